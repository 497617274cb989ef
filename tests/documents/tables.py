"""What is made smaller so that a command fits two cores, what is run by `make test-long`, and what is not run here.

A pattern is looked for in the command as the document has it (`Command.text`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.documents.commands import Command
from tests.documents.reader import FRAMES, SIZE

# The sizes of the model and the clips in a file of tensors are not stated; a size that the file's name promises is not
# that of the small model.
CLIP = (f"num_frames={FRAMES}", f"image_size={SIZE}")
SMALL = (
    "model.arch=vit_micro", "model.depth=1", f"data.num_frames={FRAMES}", f"data.input_size={SIZE}", "data.num_workers=0",
    "batch.total=4", "batch.micro=0", "run.max_steps=2", "ds.bf16.enabled=false",
)  # fmt: skip
DEMO = ("model.depth=1", "run.max_steps=2", "data.num_workers=0", "data.cache_mb=0", "ds.bf16.enabled=false")


@dataclass(frozen=True)
class Reduction:
    """Words that are put `behind` the command or behind its `launcher`, and words that others take the place of."""

    pattern: str
    behind: Sequence[str] = ()
    launcher: Sequence[str] = ()
    instead: dict[str, str] = field(default_factory=dict)


REDUCTIONS = (
    # trainings
    Reduction(r"train\.py .*--recipe (pretrain|finetune|ava|traffic)_", SMALL),
    Reduction(r"train\.py .*--recipe pretrain_videomae_", ("run.save_every=1", "run.keep=1", "run.log_every=1")),
    Reduction(r"train\.py .*--recipe finetune_", ("optim.ema_decay=0.9",)),  # which `--weights ema` asks for
    Reduction(r"(train\.py|eval) .*--recipe ava_", ("data.short_side=40",)),
    Reduction(r"train\.py .*--recipe traffic_", ("run.samples_per_epoch=8",)),
    Reduction(r"train\.py .*--recipe pretrain_dapt", ("batch.total=10", "run.samples_per_epoch=20")),
    Reduction(r"train\.py(?!.*--recipe (?!RECIPE|demo))", DEMO),
    Reduction(r"--recipe demo_finetune", ("eval.segments=1", "eval.crops=1")),
    # evaluations
    Reduction(r"dsvid eval .*--recipe (finetune|ava|traffic)_", ("data.num_workers=0",)),
    Reduction(r"eval --weights FILE\.pth", SMALL[:4]),
    # files of tensors, which do not state the size of a clip
    Reduction(r"predict --weights vit_\S+\.pth|reconstruct --weights \S+\.pth|convert FILE ", CLIP),
    # benchmarks
    Reduction(r"bench mask", ("--size", "32", "--batch", "1"), instead={"15": "2"}),
    Reduction(r"bench step", ("--size", "32", "--frames", "4"), instead={"7": "2", "5": "2"}),
    Reduction(r"bench (step|checkpoint|load)", instead=dict.fromkeys(("vit_small", "vit_base", "vit_large", "vit_giant"), "vit_micro")),
    Reduction(r"bench checkpoint", ("--repeats", "2")),
    Reduction(r"bench scaling", ("--repeats", "1", "--ranks", "1,2")),
    Reduction(r"bench ava", ("--images", "5"), instead={"3": "2"}),
    Reduction(r"bench loader", ("--clips", "4", "--repeats", "1", "--memory", "0")),
    Reduction(r"data bench", ("--videos", "2", "--clips", "2", "--repeats", "1")),
    Reduction(r"timeit", instead={"50": "1", "60": "1"}),
    # the same look at the machine, once
    Reduction(r"^dsvid env$", ("--json", "env.json")),
    # generated sets
    Reduction(r"(ava|traffic) generate", ("--train", "2", "--val", "2")),
    # what `make demo` calls when the environment is there
    Reduction(r"^make demo$", ("--quick", "--ranks", "1"), instead={"make": "dsvid"}),
    # launchers
    Reduction(r"^deepspeed (?!--hostfile|--num_acc)", launcher=("--num_accelerators", "1")),
    Reduction(r"torchrun", instead={"4": "1", "8": "2"}),
    # names that stand for the reader's own
    Reduction(r"RECIPE", instead={"RECIPE": "demo_pretrain"}),
    Reduction(r"NODE1", instead={"NODE1": "127.0.0.1"}),
)  # fmt: skip

# Commands of `dsvid` that start processes of their own for longer than a few seconds.
LONG = r"^(?!dsvid )|^dsvid (launch|bench scaling)"

# Pattern, reason, the test that runs it. Nothing else is left out.
NOT_RUN = (
    (r"^make test$", "would run this test in turn", "tests/test_contract.py"),
    (r"^sbatch |^dsvid slurm (?!.*--dry-run)", "submits to a Slurm", "tests/cluster/test_slurm.py"),
    (r"\[--recipe NAME\|FILE\]", "the form of the command, with brackets", "tests/test_contract.py"),
)


def reason_not_to_run(command: Command) -> str | None:
    return next((reason for pattern, reason, _ in NOT_RUN if re.search(pattern, command.text)), None)


def is_long(command: Command) -> bool:
    return re.search(LONG, command.text) is not None


def reduced(command: Command, folder: Path) -> list[str]:
    """The words that are run: those of the document, as small as the table makes them, with `/data/` below `folder`."""
    words, launcher = list(command.words), []
    for each in REDUCTIONS:
        if re.search(each.pattern, command.text):
            words = [each.instead.get(word, word) for word in words] + list(each.behind)
            launcher += each.launcher
    if launcher:
        words[1:1] = launcher
    return [re.sub(r"(^|=)/data/", rf"\1{folder}/data/", word) for word in words]
