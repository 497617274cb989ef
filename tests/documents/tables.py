"""What is made smaller so that a command fits two cores, what is run by `make test-long`, and what is not run here.

A pattern is looked for in the command as the document has it (`Command.text`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.documents.commands import Command

FRAMES, SIZE = 4, 32  # what every model of the reader looks at
CLIP = (f"num_frames={FRAMES}", f"image_size={SIZE}")
SMALL = (
    "model.arch=vit_micro", "model.depth=1", f"data.num_frames={FRAMES}", f"data.input_size={SIZE}",
    "data.num_workers=0", "batch.total=4", "batch.micro=0", "run.max_steps=2", "ds.bf16.enabled=false",
)  # fmt: skip
LARGER = ("vit_small", "vit_base", "vit_large", "vit_giant")
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
    Reduction(r"--recipe demo_anomaly", ("anomaly.eval_rate=50",)),
    # evaluations
    Reduction(r"dsvid eval .*--recipe (finetune|ava|traffic)_", SMALL[:5]),
    # files of tensors state neither the size of a clip nor the heads of a decoder that nobody released
    Reduction(r"predict --weights vit_\S+\.pth|reconstruct --weights \S+\.pth|convert FILE ", CLIP),
    Reduction(r"reconstruct --weights \S+\.pth|convert FILE weights/start", ("decoder_heads=2",)),
    # the lists of this reader hold four videos, the recipe's 1.35 million
    Reduction(r"dsvid plan .*--hostfile", ("--videos", "1350000")),
    # benchmarks
    Reduction(r"bench mask", ("--size", "32", "--batch", "1"), instead={"15": "2"}),
    Reduction(r"bench step", ("--size", "32", "--frames", "4"), instead={"7": "2", "5": "2"}),
    Reduction(r"bench (step|checkpoint|load)", instead=dict.fromkeys(LARGER, "vit_micro")),
    Reduction(r"bench checkpoint", ("--repeats", "2")),
    Reduction(r"bench scaling", ("--repeats", "1", "--ranks", "1,2")),
    Reduction(r"bench ava", ("--images", "5"), instead={"3": "2"}),
    Reduction(r"bench loader", ("--clips", "16", "--repeats", "1", "--memory", "0")),
    Reduction(r"data bench", ("--videos", "2", "--workers", "1", "--clips", "32", "--repeats", "1")),
    Reduction(r"timeit", instead={"50": "1", "60": "1"}),
    # defaults, so that it is the same as another command, and run once
    Reduction(r"^dsvid env$", ("--json", "env.json")),
    Reduction(r"^dsvid launch (?!.*--recipe).*--out", ("--recipe", "demo_pretrain")),
    Reduction(r"bench checkpoint --arch vit_base$", ("--stage", "2")),
    # generated sets
    Reduction(r"(ava|traffic) generate", ("--train", "2", "--val", "2")),
    # what `make demo` calls when the environment is there
    Reduction(r"^make demo$", ("--quick", "--ranks", "1"), instead={"make": "dsvid"}),
    # launchers
    Reduction(r"^deepspeed (?!--hostfile|--num_acc)", launcher=("--num_accelerators", "1")),
    Reduction(r"--hostfile (?!.*--no_ssh).*train\.py", launcher=("--no_ssh_check", "--master_addr", "127.0.0.1")),
    Reduction(r"torchrun", instead={"4": "1", "8": "2"}),
    # names that stand for the reader's own
    Reduction(r"RECIPE", instead={"RECIPE": "demo_pretrain"}),
    Reduction(r"NODE1", instead={"NODE1": "127.0.0.1"}),
)  # fmt: skip

# Launchers; commands that start processes or groups of their own for long; what needs a launcher's run of its document.
LONG = "|".join((
    r"^(?!dsvid |touch |python -m timeit )",
    r"^dsvid (launch|bench (scaling|load|checkpoint)|data bench .*--recipe) ",
    r"runs/risk/",
))  # fmt: skip

# Pattern, reason, the test that runs it. Nothing else is left out.
NOT_RUN = (
    (r"^make test$", "would run this test in turn", "tests/test_contract.py"),
    (r"^sbatch |^dsvid slurm (?!.*--dry-run)", "submits to a Slurm", "tests/cluster/test_slurm.py"),
    (r"NAME\|FILE", "the form of the command, with brackets", "tests/test_contract.py"),
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
            words = [each.instead.get(word, word) for word in words]
            words += [word for word in each.behind if word not in words or "=" not in word]
            launcher += each.launcher
    if launcher:
        place = words.index("deepspeed") + 1
        words[place:place] = launcher
    return [re.sub(r"(^|=)/data/", rf"\1{folder}/data/", word) for word in words]
