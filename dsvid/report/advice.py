"""Commands to type next, from where a run stands. Knows the command line of dsvid; runs nothing."""

from __future__ import annotations

import shlex

from dsvid.report.reading import Run
from dsvid.report.settings import option, recipe_name
from dsvid.report.verdict import state_of

Command = tuple[str, str]  # what it does, and the line to type
LAUNCHER_WORDS = ("--local_rank", "--local-rank")


def next_commands(run: Run) -> list[Command]:
    """What can be done with the run now, the likeliest first."""
    folder = shlex.quote(str(run.folder))
    found: list[Command] = []
    state = state_of(run)
    if state == "running":
        found += [
            ("Look at it again and again, in a terminal", f"dsvid status {folder} --watch 10"),
            ("Save and stop; the same command then goes on", f"touch {folder}/stop"),
        ]
    elif state != "finished" and run.argv:
        found.append((_resume_words(run), resume_command(run)))
    if run.weights_step is not None:
        found += _with_weights(run, folder)
    if run.newest_good is not None and state != "finished":
        why = "The newest checkpoint as one folder of fp32 weights"
        found.append((why, f"dsvid consolidate {folder} {shlex.quote(f'{run.folder}-weights')}"))
    found.append(("Beside another run", f"dsvid compare {folder} OTHER_RUN -o compare.html"))
    return found


def _with_weights(run: Run, folder: str) -> list[Command]:
    task = run.recipe.task if run.recipe is not None else ""
    config = shlex.quote(option(run.argv, "--ds_config") or option(run.argv, "--deepspeed_config") or "JSON")
    if task == "pretrain":
        recipe = "demo_finetune" if recipe_name(run.argv) == "demo_pretrain" else "RECIPE"
        lists = "" if recipe == "demo_finetune" else " data.train=LIST data.val=LIST"
        line = f"deepspeed dsvid/train.py --ds_config {config} --recipe {recipe} --out FINE_TUNED"
        line += f" model.init={folder}/weights{lists}"
        return [("Fine-tune from these weights (`dsvid recipes` lists the recipes)", line)]
    if not task:
        return []
    return [
        ("Test the weights again", f"dsvid eval --weights {folder}/weights --recipe {folder}/recipe.yaml --out TEST"),
        ("What the model says of a video", f"dsvid predict --weights {folder}/weights VIDEO -o sheet.png"),
    ]


def resume_command(run: Run) -> str:
    """The command line of the last start, with a launcher for its ranks."""
    world = run.starts[-1].world
    words = [word for word in run.argv[1:] if not word.startswith(LAUNCHER_WORDS)]
    start = ["python"] if world == 1 else ["deepspeed", *(["--num_accelerators", str(world)] if world else [])]
    return shlex.join([*start, run.argv[0], *words])


def _resume_words(run: Run) -> str:
    saved = run.newest_good
    where = f"Go on from {saved.name}" if saved is not None else "Start it again"
    hidden = "; put what is hidden as *** back in" if any("***" in word for word in run.argv) else ""
    hosts = (
        "; your own launcher and hosts, which are not recorded, where it was another"
        if run.starts[-1].world > 1
        else ""
    )
    return where + hosts + hidden
