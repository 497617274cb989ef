"""What weights say besides their tensors: class names, how pixels are prepared, how they were trained.

Reads it from every layout that can hold it (a dsvid folder, a Hugging Face folder, a `.pth` that dsvid wrote); knows no
models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dsvid.documents import parse_json, read_json, read_text
from dsvid.errors import CheckpointError
from dsvid.weights.folder import FORMAT

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SAMPLING_RATE = 4  # of the released Kinetics models
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
_UNNAMED = "LABEL_"  # transformers' names of classes without names


@dataclass(frozen=True)
class Card:
    """`input` holds the keys that are known of mean, std, sampling_rate, short_side and view_fps; `model` the fields of
    a dsvid model description, where the layout has one.
    """

    labels: tuple[str, ...] = ()
    input: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.input.get("mean") or IMAGENET_MEAN)

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.input.get("std") or IMAGENET_STD)

    @property
    def sampling_rate(self) -> int:
        return int(self.input.get("sampling_rate") or SAMPLING_RATE)

    @property
    def norm_pix(self) -> bool:
        """Whether pre-training predicted normalised pixels, as the originals do unless told otherwise."""
        return bool(self.trained.get("norm_pix", True))

    def short_side(self, input_size: int) -> int:
        """To which short side frames are scaled before the crop."""
        return int(self.input.get("short_side") or input_size)

    def to_config(self) -> dict[str, Any]:
        """The entries of a dsvid `config.json` besides the model."""
        known = {"mean": list(self.mean), "std": list(self.std), "sampling_rate": self.sampling_rate}
        return {"input": {**self.input, **known}, "labels": list(self.labels), "trained": dict(self.trained)}

    def with_labels(self, labels: list[str], source: str) -> Card:
        """This card with other class names. Raises CheckpointError where a name repeats."""
        twice = sorted({label for label in labels if labels.count(label) > 1}) if len(set(labels)) < len(labels) else []
        if twice:
            raise CheckpointError(f"{source}: class names repeat", found=", ".join(twice[:5]), expected="one name each")
        return replace(self, labels=tuple(labels))


def read_card(path: Path) -> Card:
    """The card of a weight folder or file; an empty one where the layout says nothing.

    Raises CheckpointError for a description that cannot be read.
    """
    if path.is_file():
        beside = path.name in WEIGHT_NAMES and (path.parent / "config.json").is_file()
        return read_card(path.parent) if beside else _of_file(path)
    if not (path / "config.json").is_file():
        run = path / "weights"
        return read_card(run) if (run / "config.json").is_file() else Card()
    config = _read_json(path / "config.json")
    if config.get("format") == FORMAT:
        return card_of(config)
    return _of_hugging_face(path, config)


def card_of(config: Mapping[str, Any]) -> Card:
    """The card in a dsvid `config.json`."""
    return Card(
        labels=tuple(config.get("labels") or ()),
        input=dict(config.get("input") or {}),
        trained=dict(config.get("trained") or {}),
        model=dict(config.get("model") or {}),
    )


def _of_hugging_face(folder: Path, config: Mapping[str, Any]) -> Card:
    own = config.get("dsvid") if isinstance(config.get("dsvid"), dict) else {}
    described = card_of({key: value for key, value in (own or {}).items() if key in ("input", "trained", "model")})
    prepared = dict(described.input)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        stated = _read_json(processor)
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if isinstance(stated.get(theirs), list):
                prepared[ours] = stated[theirs]
        size = stated.get("size")
        if isinstance(size, dict) and "shortest_edge" in size:
            prepared["short_side"] = size["shortest_edge"]
    trained = dict(described.trained)
    # transformers writes the key for classifiers too, where it means nothing.
    if isinstance(config.get("norm_pix_loss"), bool) and "PreTraining" in str(config.get("architectures")):
        trained["norm_pix"] = config["norm_pix_loss"]
    return replace(described, labels=_hugging_face_labels(config), input=prepared, trained=trained)


def _hugging_face_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return ()
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return () if all(name == f"{_UNNAMED}{i}" for i, name in enumerate(ordered)) else tuple(ordered)


def _of_file(path: Path) -> Card:
    try:
        stored = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # another format or other objects inside: whoever loads the tensors says so
        return Card()
    own = stored.get("dsvid") if isinstance(stored, dict) else None
    return card_of(own) if isinstance(own, dict) else Card()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error), expected="JSON") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}", found=type(loaded).__name__, expected="a JSON object")
    return loaded


def read_labels(path: Path) -> list[str]:
    """Class names of a file: one a line, or JSON (a list, {"0": name} or {name: 0}). Raises CheckpointError."""
    try:
        text = read_text(path)
        loaded = parse_json(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"labels={path} cannot be read", found=str(error), expected="one name a line") from error
    if isinstance(loaded, dict):
        if all(isinstance(value, int) for value in loaded.values()):
            loaded = {str(number): name for name, number in loaded.items()}
        if sorted(loaded) != sorted(str(i) for i in range(len(loaded))):
            raise CheckpointError(f"labels={path}", found=", ".join(list(loaded)[:4]), expected='{"0": name, "1": …}')
        loaded = [loaded[str(i)] for i in range(len(loaded))]
    names = [str(name).strip() for name in loaded if str(name).strip()]
    if not names:
        raise CheckpointError(f"labels={path} holds no names", expected="one name a line")
    return names
