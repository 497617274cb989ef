"""`dsvid bench step --task classify`: a fine-tuning step against transformers' VideoMAEForVideoClassification."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsvid.cli.bench_step import Arm, Bench
from dsvid.errors import DsvidError
from dsvid.models.flops import training_flops
from dsvid.models.spec import build_model
from dsvid.objectives.classify import ClassifyObjective
from dsvid.weights.card import Card
from dsvid.weights.export import write_hf


class FinetuneBench(Bench):
    """All tokens of a clip, mean pooling, cross-entropy over the 400 classes of Kinetics; no mixing, no drop path."""

    classes = 400

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.batch["label"] = torch.arange(args.batch, device=self.device) % self.classes

    def objective(self) -> Any:
        """Ours, with the seed's weights."""
        model: Any = build_model(self.spec, seed=self.args.seed)
        # The original's head starts near zero: then all losses are ln 400, and agreement would say little.
        generator = torch.Generator().manual_seed(self.args.seed)
        with torch.no_grad():
            model.head.weight.normal_(std=0.05, generator=generator)
        return ClassifyObjective(model, self.grid)

    def flops(self) -> float:
        """Of a step, by formula."""
        return float(self.args.batch) * training_flops(self.spec)

    def _theirs(self, name: str, attention: str) -> Arm:
        model = self._converted(attention).to(self.device)

        def step() -> Tensor:
            pixels = self.pixels()
            with self._autocast(self.half):
                return model(pixels, labels=self.batch["label"]).loss  # type: ignore[no-any-return]

        return Arm(name, model, step)

    def _converted(self, attention: str) -> nn.Module:
        """Our weights in their model, by way of `dsvid convert --to hf`."""
        try:
            from transformers import VideoMAEForVideoClassification
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise DsvidError(
                "bench step compares with transformers, which cannot be imported",
                found=str(error),
                fix="pip install 'dsvid[bench]', or --alone",
            ) from error
        disable_progress_bar()
        ours = self.objective().model
        with tempfile.TemporaryDirectory(prefix="dsvid-bench-") as folder:
            write_hf(Path(folder) / "hf", ours.state_dict(), self.spec, Card())
            model = VideoMAEForVideoClassification.from_pretrained(
                Path(folder) / "hf", attn_implementation=attention, dtype=torch.float32
            )
        model.fc_norm.eps = ours.fc_norm.eps  # theirs takes none from its config
        trained: nn.Module = model.train()
        return trained
