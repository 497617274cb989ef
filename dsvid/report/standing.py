"""Where a run stands, as a dozen facts and as lines for a terminal. Reads the ends of long files: it answers fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsvid.report.ending import records
from dsvid.report.reading import Run, read_run
from dsvid.report.verdict import TITLES, WAIT_LIMIT, Speed, seconds_left, speed_of, state_of, state_sentence
from dsvid.report.words import counted, duration, one_line, percent, plain, short, size, times

LOG_LINES = 3


def standing(folder: Path, *, verify: bool = False) -> dict[str, Any]:
    """The facts, as JSON can hold them; None is what is not known. Raises CheckpointError where there is no run.

    `verify`: the newest checkpoint's files are read and compared with their SHA-256.
    """
    run = read_run(folder, tail=True, verify_contents=verify)
    rows, speed = run.training, speed_of(run)
    return {
        "run": plain(folder),
        "state": state_of(run),
        "sentence": plain(state_sentence(run).text),
        "host": run.holder.host or None,
        "pid": run.holder.pid or None,
        "step": run.step,
        "stop_step": run.stop_step,
        "epoch": rows.last("epoch"),
        "seconds_left": seconds_left(run) if run.holder.alive else None,
        "last_line_age_s": None if run.last_line_at is None else max(0.0, run.now - run.last_line_at),
        **{name: rows.last(name) for name in ("loss", "lr", "grad_norm", "mem_gb")},
        **_speed_facts(speed),
        "evaluation": _last_evaluation(run),
        "only_last_lines": run.cut_off,
        "checkpoint": _checkpoint(run, verify),
        "checkpoint_faults": {one.name: plain(one.fault) for one in run.checkpoints if one.fault},
        "weights_step": run.weights_step,
        "starts": len(run.starts),
        "events": _counts(run),
        "bad_clips": {"files": len(run.bad_clips.files), "lines": run.bad_clips.lines},
        "not_read": [{"file": plain(one.file), "what": plain(one.what)} for one in run.damage],
        "log": [one_line(text) for _, text in records(folder)[-LOG_LINES:]],
    }


def _speed_facts(speed: Speed) -> dict[str, float | None]:
    return {"clips_per_s": speed.clips_per_s, "step_s": speed.step_s, "data_wait": speed.wait, "mfu": speed.mfu}


def _last_evaluation(run: Run) -> dict[str, Any] | None:
    if not run.evaluations:
        return None
    row = max(run.evaluations, key=lambda one: (one["step"], bool(one.get("final"))))
    return {key: value for key, value in row.items() if isinstance(value, int | float) or key == "split"}


def _checkpoint(run: Run, verified: bool) -> dict[str, Any] | None:
    newest = run.newest_good
    if newest is None:
        return None
    checked = "SHA-256 of every file" if verified else "manifest and sizes"
    age_s = max(0.0, run.now - newest.saved_at)
    return {"name": newest.name, "step": newest.step, "age_s": age_s, "bytes": newest.size_bytes, "checked": checked}


def _counts(run: Run) -> dict[str, int]:
    kinds = [one_line(one.get("kind"), 60) for one in run.events]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def standing_lines(facts: dict[str, Any]) -> list[str]:
    """The facts as lines: a name, then what is known."""
    state = TITLES[facts["state"]]
    lines = [
        ("run", facts["run"]),
        ("state", facts["sentence"] if facts["sentence"].startswith(state) else f"{state}: {facts['sentence']}"),
        ("step", _step(facts)),
        ("loss", f"{short(facts['loss'])}, lr {short(facts['lr'])}, gradient norm {short(facts['grad_norm'])}"),
        ("speed", f"{short(facts['clips_per_s'], 3)} clips/s, {short(facts['step_s'], 3)} s a step, MFU {_mfu(facts)}"),
        ("data wait", _wait(facts["data_wait"])),
        ("memory", f"{short(facts['mem_gb'], 3)} GB at most on rank 0"),
        ("evaluation", _evaluation(facts)),
        ("checkpoint", _saved(facts)),
        ("faults", _faults(facts)),
        *[("not read", f"{one['file']} {one_line(one['what'], 300)}") for one in facts["not_read"]],
        *[("log" if at == 0 else "", line) for at, line in enumerate(facts["log"])],
    ]
    return [f"{name:<11} {text}" for name, text in lines]


def _step(facts: dict[str, Any]) -> str:
    of = f" of {facts['stop_step']:,}" if facts["stop_step"] else ""
    parts = [f"{facts['step']:,}{of}", f"epoch {short(facts['epoch'])}"]
    if facts["last_line_age_s"] is not None:
        parts.append(f"last line {duration(facts['last_line_age_s'])} ago")
    if facts["seconds_left"] is not None:
        parts.append(f"about {duration(facts['seconds_left'])} left")
    return ", ".join(parts)


def _mfu(facts: dict[str, Any]) -> str:
    return "not known" if facts["mfu"] is None else percent(facts["mfu"])


def _wait(share: float | None) -> str:
    if share is None:
        return "not known"
    return f"{percent(share)} of a step" + (
        " (reading limits the speed: more data.num_workers)" if share > WAIT_LIMIT else ""
    )


def _evaluation(facts: dict[str, Any]) -> str:
    row = facts["evaluation"]
    if row is None:
        return "none in the last lines of metrics.jsonl" if facts["only_last_lines"] else "none yet"
    hidden = ("step", "unreadable", "views_missing", "short_videos", "final")
    scores = [f"{key} {short(value)}" for key, value in row.items() if isinstance(value, float) and key not in hidden]
    what = "final test" if row.get("final") else one_line(row.get("split", ""), 20)
    return f"{what} at step {row['step']:,}: {', '.join(scores[:4]) or 'no score'}"


def _saved(facts: dict[str, Any]) -> str:
    faults = "".join(f"; {name}: {one_line(fault)}" for name, fault in facts["checkpoint_faults"].items())
    newest = facts["checkpoint"]
    if newest is None:
        return "none that is whole" + faults if faults else "none yet"
    age, bytes_ = duration(newest["age_s"]), size(newest["bytes"])
    return f"{newest['name']}, {age} old, {bytes_}, {newest['checked']} agree{faults}"


def _faults(facts: dict[str, Any]) -> str:
    told = [f"{kind}: {count}" for kind, count in facts["events"].items()]
    if facts["bad_clips"]["lines"]:
        told.append(f"{counted(facts['bad_clips']['files'], 'video')} could not be read")
    if facts["starts"] > 1:
        told.append(f"started again {times(facts['starts'] - 1)}")
    return ", ".join(told) or "none recorded"
