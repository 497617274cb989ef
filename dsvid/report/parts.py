"""The parts of a run's report below its curves: faults, samples, settings, environment, next steps."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from dsvid.documents import DocumentError, read_text
from dsvid.recipe import Recipe, dump_yaml
from dsvid.report.advice import next_commands
from dsvid.report.lines import Damage, number
from dsvid.report.markup import Markup, bullets, commands, folded, joined, picture, prose, table, tag
from dsvid.report.reading import Run
from dsvid.report.run_charts import EVENTS
from dsvid.report.series import equal_steps
from dsvid.report.settings import Difference, differences, recipe_keys, recipe_name, shipped
from dsvid.report.verdict import SCORES, WAIT_LIMIT, speed_of
from dsvid.report.words import clock, counted, one_line, percent, plain, short, size
from dsvid.strict_yaml import MAX_YAML_BYTES

MOST_ROWS = 20
MOST_PICTURES = 2  # reconstructions; a test's pictures come on top of them

# From docs/performance.md: what is seen, and what is turned.
READING = (
    "data.num_workers up to the cores of a rank",
    "data.num_sample=4: four clips of each decoded video",
    "`dsvid data pack LIST OUT` once, then data.train=OUT: packed shards instead of videos; also where the disk or the "
    "file server is slow and the cores are idle",
    "`dsvid bench loader VIDEO` says what either gives on this machine",
)
COMPUTING = (
    "If the seconds of a step grow with the nodes, it is the network: fewer, larger steps (batch.micro up), or ZeRO "
    "stage 1 or 2 in place of 3",
    "If the memory is full: batch.micro down (accumulation keeps batch.total), then stage 2, then 3, then activation "
    "checkpointing",
    "Else, where the MFU is low: batch.micro up, model.compile=true, bf16, flash attention (`dsvid env` says which is "
    "used)",
)


def damage(run: Run) -> list[Markup]:
    """Every file that could not be read, named."""
    if not run.damage:
        return []
    items = [joined([tag("code", one.file), tag("span", f" {one_line(one.what, 400)}")]) for one in run.damage]
    told = tag("p", "Not everything in this folder could be read. The page shows the rest:")
    return [tag("div", joined([told, bullets(items)]), class_="notice")]


def evaluations(run: Run) -> list[Markup]:
    """Validations and the final test as a table."""
    if not run.evaluations:
        return []
    names = [name for name in SCORES if any(number(one.get(name)) is not None for one in run.evaluations)][:3]
    places = equal_steps(range(len(run.evaluations)), MOST_ROWS)
    rows = []
    for one in (run.evaluations[at] for at in places):
        what = "final test" if one.get("final") else str(one.get("split", "–"))
        counts = [f"{one[key]:,} {key}" for key in ("videos", "frames", "key_frames") if isinstance(one.get(key), int)]
        rows.append((f"{one['step']:,}", what, *(short(number(one.get(name))) for name in names), *counts[:1]))
    head = (
        "Step",
        "List",
        *(", ".join(filter(None, SCORES[name])) for name in names),
        *(["Of"] if rows and len(rows[0]) > len(names) + 2 else []),
    )
    shown = table("Evaluations", head, rows, class_="counted")
    published = run.recipe.about.published if run.recipe is not None else ""
    note = [tag("p", prose(f"Published with this recipe: {published}"), class_="quiet")] if published else []
    return [folded("Evaluations as numbers", shown), *note]


def what_to_turn(run: Run) -> Markup:
    """What changes the speed, by what limits it."""
    wait = speed_of(run).wait
    if wait is None:
        return tag("p", "Not known: no training line tells it.", class_="quiet")
    reading = wait > WAIT_LIMIT
    whole = speed_of(run).wait_all
    told = f"Over the whole run {percent(whole)} of the time in steps was waiting for data; now it is {percent(wait)}."
    lead = "Reading limits this run. What to turn, in this order:" if reading else "Reading does not limit this run."
    source = "From “What limits your run, and what to turn” in dsvid's docs/performance.md."
    return joined(
        [
            tag("p", told),
            tag("p", lead),
            bullets(map(prose, READING if reading else COMPUTING)),
            tag("p", source, class_="quiet"),
        ]
    )


# ---- faults --------------------------------------------------------------------------------------------------------


def faults(run: Run) -> list[Markup]:
    """Events, unreadable clips and starts."""
    return [*_events(run), *_bad_clips(run), *_starts(run)]


def _events(run: Run) -> list[Markup]:
    if not run.events:
        return [tag("p", "No step was skipped, the loss did not jump, no save failed: events.jsonl has no line.")]
    shown = run.events[-MOST_ROWS:]
    rows = [(short(number(one.get("step")), 9), _letter(one) + str(one.get("kind")), _facts(one)) for one in shown]
    caption = f"Events, {counted(len(run.events), 'line')} in events.jsonl"
    if len(shown) < len(run.events):
        caption += f"; the last {len(shown)} of them"
    return [
        table(
            caption, ("Step", "What happened", "More"), [(a, one_line(b, 100), c) for a, b, c in rows], class_="counted"
        )
    ]


def _letter(event: dict[str, Any]) -> str:
    known = EVENTS.get(str(event.get("kind")))
    return f"{known[0]}: " if known else ""


def _facts(event: dict[str, Any]) -> str:
    told = []
    for key, value in event.items():
        if key == "ranks" and isinstance(value, list):
            told += [_rank_facts(one) for one in value[:2] if isinstance(one, dict)]
        elif key not in ("kind", "step", "time"):
            told.append(f"{key.replace('_', ' ')}: {value}")
    return one_line("; ".join(told), 300)


def _rank_facts(rank: dict[str, Any]) -> str:
    clips = [clip for some in rank.get("clips") or () if isinstance(some, list) for clip in some]
    return f"rank {rank.get('rank')} on {rank.get('host')}, its clips: {', '.join(map(str, clips[:3]))}"


def _bad_clips(run: Run) -> list[Markup]:
    bad = run.bad_clips
    if not bad.lines:
        return [tag("p", "Every clip could be read.")]
    causes = Counter(error for _, error in bad.files.values())
    often = sorted(bad.files.items(), key=lambda item: -item[1][0])[:MOST_ROWS]
    counts = f"{counted(len(bad.files), 'file')}, {counted(bad.lines, 'line')} in bad_clips.jsonl"
    caption = f"Videos that could not be read: {counts}"
    rows = [(one_line(path), f"{count:,}", one_line(error, 160)) for path, (count, error) in often]
    shown = table(caption + (f"; the {len(rows)} most frequent" if len(rows) < len(bad.files) else ""),
                  ("File", "Times", "Cause"), rows)  # fmt: skip
    most = causes.most_common(1)[0]
    return [
        shown,
        *([tag("p", f"The most frequent cause: {one_line(most[0])} ({most[1]} files).")] if most[1] > 1 else []),
    ]


def _starts(run: Run) -> list[Markup]:
    if len(run.starts) < 2:
        return []
    starts = list(enumerate(run.starts))[-MOST_ROWS:]
    rows = [
        (f"R{at}" if at else "first", f"{one.step:,}", clock(one.time), one_line(one.host, 40), str(one.world or "–"))
        for at, one in starts
    ]
    return [
        table(f"Starts: {len(run.starts)}", ("Start", "From step", "Time", "Host", "Ranks"), rows, class_="counted")
    ]


# ---- samples -------------------------------------------------------------------------------------------------------


def samples(run: Run) -> list[Markup]:
    """The newest reconstructions and the pictures of the test; damaged ones are added to the run's damage."""
    drawn = [path for path in run.pictures if path.parent.name == "pictures"][:MOST_PICTURES]
    shown = []
    for path in [*drawn, *(path for path in run.pictures if path.parent.name == "test")]:
        name = f"{path.parent.name}/{path.name}"
        alt, caption = _picture_words(path.stem, path.parent.name)
        try:
            shown.append(
                tag("figure", joined([picture(path, alt), tag("figcaption", f"{caption} ({name})")]), class_="card")
            )
        except (OSError, ValueError) as error:
            run.damage.append(Damage(name, str(error)))
    if not shown:
        return []
    given = run.recipe is not None and run.recipe.task == "pretrain" and run.recipe.pretrain.norm_pix
    told = "The rebuilt row is given the true mean and deviation of every hidden patch, which the last row shows alone."
    note = [tag("p", told, class_="quiet")] if given and drawn else []
    return [tag("h2", "What it sees"), *note, tag("div", joined(shown), class_="pictures")]


def _picture_words(stem: str, folder: str) -> tuple[str, str]:
    digits = stem.rpartition("-")[2]
    if stem.startswith("reconstruction-") and digits.isdigit():
        step = f"step {int(digits):,}"
        alt = f"Frames of one clip at {step}: original, what the encoder sees, rebuilt, the patches' mean colours"
        return alt, f"Reconstruction at {step}"
    if folder == "test":
        return f"Picture of the final test: {stem}", f"Final test: {stem}"
    return f"Picture {stem}", stem


# ---- settings ------------------------------------------------------------------------------------------------------


def settings(run: Run) -> list[Markup]:
    """What differs from the shipped recipe, from the defaults, then everything."""
    found: list[Markup] = []
    if run.recipe is None:
        found += _unread_recipe(run)
    else:
        found += _recipe_settings(run, run.recipe)
    if run.config:
        text = json.dumps(run.config, indent=2)
        found.append(folded("The DeepSpeed JSON, resolved", tag("pre", tag("code", plain(text)), tabindex="0")))
    return found


def _unread_recipe(run: Run) -> list[Markup]:
    """recipe.yaml as it stands, where it is a text at least."""
    told = tag("p", "recipe.yaml could not be understood: see the top of the page.", class_="quiet")
    try:
        text = read_text(run.folder / "recipe.yaml", MAX_YAML_BYTES)
    except (OSError, DocumentError):
        return [told]
    return [told, folded("recipe.yaml as it stands", tag("pre", tag("code", text), tabindex="0"))]


def _recipe_settings(run: Run, recipe: Recipe) -> list[Markup]:
    ours, base, name = recipe_keys(recipe), shipped(run.argv), recipe_name(run.argv)
    found = []
    if base is not None:
        rows = differences(ours, recipe_keys(base))
        told = f"What differs from the shipped recipe {name}"
        found.append(
            _table(told, rows, "Recipe") if rows else tag("p", f"Every key is as in the shipped recipe {name}.")
        )
    else:
        found.append(
            tag("p", f"The recipe {one_line(name or '(not known)')} is none that dsvid ships.", class_="quiet")
        )
    from_json = [word for word in run.argv if word.startswith("ds.") and "=" in word]
    if from_json:
        found.append(tag("p", joined([tag("span", "Laid over the DeepSpeed JSON: "),
                                      tag("code", " ".join(from_json))])))  # fmt: skip
    if recipe.about.source:
        found.append(tag("p", f"Source of the recipe: {recipe.about.source}", class_="quiet"))
    if recipe.about.note:
        found.append(tag("p", prose(f"Its own note: {recipe.about.note}"), class_="quiet"))
    own = differences(ours, recipe_keys(Recipe()))
    found.append(folded(f"What differs from the defaults: {counted(len(own), 'key')}", _table("Keys", own, "Default")))
    text = dump_yaml(recipe)
    found.append(folded("The recipe, every key", tag("pre", tag("code", plain(text)), tabindex="0")))
    return found


def _table(caption: str, rows: list[Difference], other: str) -> Markup:
    cells = [(key, one_line(ours, 120), one_line(theirs, 120)) for key, ours, theirs in rows]
    return table(caption, ("Key", "Here", other), cells)


# ---- environment, next steps ---------------------------------------------------------------------------------------


def environment(run: Run) -> list[Markup]:
    """Host, ranks, versions, commit, checkpoints, command line."""
    rows: list[tuple[str, str]] = []
    if run.starts:
        last = run.starts[-1]
        rows += [("Host of rank 0", last.host), ("Ranks", str(last.world or "not known")),
                 ("Code", last.commit[:12] or "not known"), *sorted(last.versions.items())]  # fmt: skip
    rows += [("Precision", _precision(run)), ("ZeRO stage", _stage(run))]
    rows += [
        (one.name, one.fault or f"{size(one.size_bytes)}; manifest and sizes agree") for one in run.checkpoints[:4]
    ]
    found = [table("As the last start recorded it", ("What", "Value"), [(a, one_line(b, 300)) for a, b in rows])]
    if run.argv:
        found.append(folded("The command line", tag("pre", tag("code", " ".join(run.argv)), tabindex="0")))
    return found


def _precision(run: Run) -> str:
    on = [
        name for name in ("bf16", "fp16") if isinstance(run.config.get(name), dict) and run.config[name].get("enabled")
    ]
    return on[0] if on else "fp32" if run.config else "not known"


def _stage(run: Run) -> str:
    zero = run.config.get("zero_optimization")
    return str(zero.get("stage", 0)) if isinstance(zero, dict) else "0" if run.config else "not known"


def next_steps(run: Run) -> Markup:
    """Commands to type."""
    return commands(next_commands(run))
