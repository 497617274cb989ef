"""Numbers out of a DeepSpeed checkpoint folder of ZeRO stage 0, 1, 2 or 3: any part of any parameter, of any kind.

Reads DeepSpeed's own files, memory-mapped and without running anything in them; needs no deepspeed, engine, GPU or
distributed start. Knows files, not models; where a parameter lies in them is `layout`'s.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsvid.documents import DocumentError, read_json
from dsvid.errors import CheckpointError
from dsvid.weights.layout import Layout, Place, Shapes, clean, stage0, stage3, stage12
from dsvid.weights.pickles import load_pickle

KINDS = ("master", "exp_avg", "exp_avg_sq", "average")
AVERAGE_FILE = "ema_rank_{:05d}.pt"
_CHUNK = 1 << 23  # numbers moved at a time where they change type or device on the way
_SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis", "scale_factor", "scale_window")
# Parts of the model-states file that are not handed on as `module_state`.
_WEIGHTS = (
    "module", "buffer_names", "optimizer", "param_shapes", "frozen_param_shapes", "frozen_param_fragments",
    "shared_params", "ds_config",
)  # fmt: skip


# ---- the few DeepSpeed classes that its files mention ---------------------------------------------------------------


class _Stage(enum.Enum):
    disabled = 0
    optimizer_states = 1
    gradients = 2
    weights = 3


def _stage_named(owner: object, name: object) -> _Stage:
    """What stands for `getattr`, by which Python 3.11.0 to 3.11.3 pickle a stage: its members, and nothing else."""
    if owner is not _Stage or not isinstance(name, str) or name not in _Stage.__members__:
        raise ValueError(f"attribute {name!r} of {owner!r:.60} is no ZeRO stage")
    return _Stage[name]


class _StandIn:
    """Takes the attributes of a DeepSpeed object that a shard mentions, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def _named(name: str) -> tuple[Any, str]:
    return (type(name.rsplit(".", 1)[1], (_StandIn,), {}), name)


ALLOWED: tuple[Any, ...] = (
    (_Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_stage_named, "builtins.getattr"),
    _named("deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    _named("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    _named("deepspeed.utils.tensor_fragment.fragment_address"),
)


def load_file(path: Path) -> dict[str, Any]:
    """One of DeepSpeed's files, or of dsvid's beside them. Raises CheckpointError that names the file."""
    loaded = load_pickle(
        path, ALLOWED, beside=" and DeepSpeed's four plain classes", fix="an intact checkpoint: copy the file again"
    )
    if not isinstance(loaded, dict):
        raise CheckpointError(f"checkpoint file {path}", found=type(loaded).__name__, expected="a dictionary")
    return loaded


class Shards:
    """An opened checkpoint folder; made by `open_shards`. Names are DeepSpeed's, without wrappers.

    `names`: the model's own state dict. `frozen`: parameters that no optimizer holds. `tied`: other name -> the name it
    is stored under. `module_state`: what else the run needs to go on: counters, `lr_scheduler`, the client's state,
    `loss_scaler` where there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = _manifest(folder)
        self._models = _model_files(folder)
        self._check_listed([*self._models, *folder.glob("*_optim_states.pt"), *folder.glob("ema_rank_*.pt")])
        self._shards, self._shard_files = _optimizer_shards(folder)
        model = load_file(self._models[0])
        self.stage = _stage_of(self._shards)
        self.world = len(self._shards) or int(model.get("dp_world_size") or 1)
        self._check_world(model)
        module = model.get("module")
        if not isinstance(module, Mapping) or not all(isinstance(value, Tensor) for value in module.values()):
            raise CheckpointError(f"{self._models[0]} holds no weights", found=type(module).__name__)
        self._module: dict[str, Tensor] = {clean(name): tensor for name, tensor in module.items()}
        self.names: list[str] = list(self._module)
        buffers = [clean(name) for name in model.get("buffer_names") or ()]
        self.buffers: dict[str, Tensor] = {name: self._module[name] for name in buffers if name in self._module}
        self.tied = self._find_tied(model)
        layout = self._find_layout(model)
        self.groups: list[list[str]] = [list(group) for group in layout.groups]
        self.shapes: Shapes = {name: shape for group in layout.groups for name, shape in group.items()}
        self.hypers = layout.hypers
        self._places, self._masters, self._states = layout.places, layout.masters, layout.states
        self._check_steps()
        self._check_sizes()
        self._averages: list[list[Tensor]] | None = None
        self.frozen: Shapes = self._find_frozen(model)
        self._fragments: list[dict[str, Tensor]] | None = None
        self.module_state: dict[str, Any] = {key: value for key, value in model.items() if key not in _WEIGHTS}
        scaler = _loss_scaler(self._shards[0].get("loss_scaler") if self._shards else model.get("optimizer"))
        if scaler:
            self.module_state["loss_scaler"] = scaler

    # ---- what is there

    def has(self, kind: str) -> bool:
        """Whether the checkpoint holds numbers of this kind."""
        if kind == "average":
            return (self.folder / AVERAGE_FILE.format(0)).is_file()
        if kind == "master":
            return bool(self._masters)
        return any(kind in state for rank in self._states for state in rank)

    def require(self, kind: str) -> None:
        """Raise CheckpointError that names what is missing where the checkpoint holds no numbers of this kind."""
        for place in [place for places in self._places.values() for place in places][:1]:
            self._flat(kind, place)

    def step_of(self, name: str) -> float | None:
        """The optimizer's step counter of a parameter; None before its first step."""
        for place in self._places.get(name, ()):
            if place.rank < len(self._states) and place.part < len(self._states[place.rank]):
                step = self._states[place.rank][place.part].get("step")
                if step is not None:
                    return float(step)
        return None

    # ---- the numbers

    @torch.no_grad()
    def read(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Fill the 1-D tensor `out` with the numbers from `start` on of the flattened parameter.

        Raises CheckpointError where the files do not hold all of them.
        """
        if name not in self._places:
            raise CheckpointError(f"{self.folder} holds no trained parameter {name}")
        self._fill(name, kind, start, out, self._places[name], lambda place: self._flat(kind, place))

    @torch.no_grad()
    def read_frozen(self, name: str, start: int, out: Tensor) -> None:
        """As `read`, for a parameter of `frozen`, which has no master; in the type of `out`."""
        if name not in self.frozen:
            raise CheckpointError(f"{self.folder} holds no frozen parameter {name}")
        count = math.prod(self.frozen[name])
        if self.stage < 3:
            places = [Place(0, count, 0, 0, 0)]
            self._fill(name, "frozen", start, out, places, lambda _: (self._module[name].reshape(-1), self._models[0]))
            return
        fragments = self._frozen_fragments()
        share = math.ceil(count / self.world)
        places = [
            Place(first, min(share, count - first), rank, 0, 0)
            for rank, first in enumerate(range(0, count, share or 1))
        ]

        def held(place: Place) -> tuple[Tensor, Path]:
            part = fragments[place.rank].get(name)
            if part is None:
                raise CheckpointError(f"{self._models[place.rank]} holds no part of {name}")
            return part.reshape(-1), self._models[place.rank]

        self._fill(name, "frozen", start, out, places, held)

    def _fill(
        self,
        name: str,
        kind: str,
        start: int,
        out: Tensor,
        places: Sequence[Place],
        held: Callable[[Place], tuple[Tensor, Path]],
    ) -> None:
        if out.dim() != 1 or start < 0:
            raise ValueError(f"{name}: a 1-D tensor and a start of 0 or more are needed")
        stop, reached = start + out.numel(), start
        for place in places:
            low, high = max(start, place.start), min(stop, place.start + place.numel)
            if low >= high:
                continue
            if low != reached:
                break
            flat, path = held(place)
            offset = place.offset + low - place.start
            if offset + high - low > flat.numel():
                raise CheckpointError(
                    f"{path} is too short: {kind} of {name} is cut off",
                    found=f"{flat.numel()} numbers in part {place.part}",
                    expected=f"at least {offset + high - low}",
                )
            _copy(out[low - start : high - start], flat[offset : offset + high - low])
            reached = high
        if reached != stop:
            raise CheckpointError(
                f"{self.folder} does not hold all of {kind} of {name}",
                found=f"nothing from number {reached} on",
                expected=f"numbers {start} to {stop - 1}",
            )

    def _flat(self, kind: str, place: Place) -> tuple[Tensor, Path]:
        """The flat tensor that a place points into, and the file that it is in."""
        path = self._shard_files[place.rank] if self._shard_files else self._models[0]
        if kind == "average":
            return self._average(place)
        if kind == "master":
            if not self._masters:
                raise CheckpointError(
                    f"{self._models[0]} holds half-precision weights and no fp32 masters that can be told apart",
                    expected="a checkpoint that dsvid wrote, with its manifest.json",
                    fix="`dsvid convert` of that file takes the half-precision weights themselves",
                )
            return self._masters[place.rank][place.part].reshape(-1), path
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        parts = self._states[place.rank] if self._states else []
        value = parts[place.part].get(kind) if place.part < len(parts) else None
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds no {kind}",
                found=f"{len(parts)} optimizer states",
                expected="Adam's moments, and at stage 0 a manifest.json that names the parameters of each group",
            )
        return value.reshape(-1), path

    # ---- opening the rest

    def _average(self, place: Place) -> tuple[Tensor, Path]:
        if self._averages is None:
            self._averages = _averages(self.folder, self.world if self.stage else 1)
        path, parts = self.folder / AVERAGE_FILE.format(place.rank), self._averages[place.rank]
        if place.part >= len(parts):
            raise CheckpointError(
                f"{path} has another layout than the weights",
                found=f"{len(parts)} parts",
                expected=len(self._masters[place.rank]) if self._masters else f"at least {place.part + 1}",
            )
        return parts[place.part].reshape(-1), path

    def _frozen_fragments(self) -> list[dict[str, Tensor]]:
        if self._fragments is None:
            self._fragments = [
                {clean(name): part for name, part in (load_file(path).get("frozen_param_fragments") or {}).items()}
                for path in self._models
            ]
        return self._fragments

    def _check_listed(self, paths: Sequence[Path]) -> None:
        """A file that the manifest does not list was verified by nobody."""
        listed = self._manifest.get("files")
        strange = [path.name for path in paths if isinstance(listed, Mapping) and path.name not in listed]
        if strange:
            raise CheckpointError(
                f"{self.folder} holds files that its manifest.json does not list",
                found=", ".join(sorted(strange)[:4]),
                fix="another checkpoint, or remove what was put there",
            )

    def _check_world(self, model: Mapping[str, Any]) -> None:
        stated = model.get("dp_world_size")
        if self._shards and stated is not None and int(stated) != self.world:
            raise CheckpointError(
                f"{self.folder} mixes files of runs with other numbers of ranks",
                found=f"{self._models[0].name} of {int(stated)}, {self._shard_files[0].name} of {self.world}",
                expected="the files of one save",
                fix="another checkpoint",
            )
        ranks = [_rank_of(path) for path in self._models]
        if ranks != (list(range(self.world)) if self.stage == 3 else [-1]):
            raise CheckpointError(
                f"{self.folder} is incomplete",
                found=f"model states of ranks {ranks}" if ranks != [-1] else self._models[0].name,
                expected=f"those of ranks 0 to {self.world - 1}" if self.stage == 3 else "mp_rank_00_model_states.pt",
            )

    def _check_steps(self) -> None:
        """All ranks step together: their counters differ only where files of two saves came together."""
        if not self._shard_files:
            return
        used = {(place.rank, place.part) for places in self._places.values() for place in places}  # not padding alone
        known: dict[int, tuple[float, Path]] = {}
        for rank, (path, states) in enumerate(zip(self._shard_files, self._states, strict=True)):
            for part, state in enumerate(states):
                if (rank, part) not in used or "step" not in state:
                    continue
                step, before = known.setdefault(part, (float(state["step"]), path))
                if step != float(state["step"]):
                    raise CheckpointError(
                        f"{path} is of another step than {before.name}",
                        found=f"step {float(state['step']):.0f}",
                        expected=f"step {step:.0f}",
                        fix="another checkpoint",
                    )

    def _check_sizes(self) -> None:
        """Every place must lie within its master: so a shape that lies is found before memory is asked for."""
        for name, places in self._places.items():
            if any(size < 0 for size in self.shapes[name]):
                raise ValueError(f"{name} has the shape {list(self.shapes[name])}")
            held = sum(place.numel for place in places)
            short = [p for p in places if self._masters and p.offset + p.numel > self._flat("master", p)[0].numel()]
            if short or held != math.prod(self.shapes[name]):
                path = self._flat("master", short[0])[1] if short else self._models[0]
                raise CheckpointError(
                    f"{path} is too short: master of {name} is cut off",
                    found=f"{held} numbers in {len(places)} places" if not short else f"rank {short[0].rank}",
                    expected=f"the shape {list(self.shapes[name])}",
                )

    def _find_tied(self, model: Mapping[str, Any]) -> dict[str, str]:
        """From the file; at stage 0, which does not say, from tensors that were saved as one."""
        shared = model.get("shared_params")
        if shared is not None:
            return {clean(other): clean(name) for other, name in shared.items()}
        seen: dict[tuple[Any, ...], str] = {}
        tied = {}
        for name, tensor in self._module.items():
            if tensor.numel() and name not in self.buffers:
                first = seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
                if first != name:
                    tied[name] = first
        return tied

    def _find_layout(self, model: Mapping[str, Any]) -> Layout:
        if not self._shards:
            weights = {n: t.shape for n, t in self._module.items() if n not in self.buffers and n not in self.tied}
            return stage0(self._models[0], self._module, model.get("optimizer"), self._group_names(), weights)
        listed = model["param_shapes"]
        shapes = [{clean(name): torch.Size(shape) for name, shape in part.items()} for part in listed]
        return (stage3 if self.stage == 3 else stage12)(shapes, self._shards, self._shard_files)

    def _group_names(self) -> list[list[str]] | None:
        """The parameter names of each optimizer group, from dsvid's manifest."""
        groups = self._manifest.get("groups")
        return None if groups is None else [[clean(str(name)) for name in group] for group in groups]

    def _find_frozen(self, model: Mapping[str, Any]) -> Shapes:
        stated = model.get("frozen_param_shapes")
        if stated is not None:
            return {clean(name): torch.Size(shape) for name, shape in stated.items()}
        if self.stage == 3:
            return {}
        # Stages 0 and 1 do not list them: what the module holds besides is frozen.
        return {
            name: tensor.shape
            for name, tensor in self._module.items()
            if name not in self.shapes and name not in self.buffers and name not in self.tied
        }


def open_shards(folder: Path) -> Shards:
    """Open a DeepSpeed checkpoint folder (one tag). Reads headers and names, no weights.

    Raises CheckpointError that names what is missing, damaged or of another run.
    """
    try:
        return Shards(folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: its files are not laid out as DeepSpeed's",
            found=f"{type(error).__name__}: {error}",
            expected="a checkpoint of DeepSpeed's ZeRO stage 0 to 3",
        ) from error


def _copy(out: Tensor, source: Tensor) -> None:
    if out.dtype == source.dtype and out.device == source.device:
        out.copy_(source)
        return
    for start in range(0, out.numel(), _CHUNK):  # a copy that converts makes a whole temporary first
        out[start : start + _CHUNK].copy_(source[start : start + _CHUNK])


# ---- the files of a folder -----------------------------------------------------------------------------------------


def _rank_of(path: Path) -> int:
    _, _, rest = path.name.partition("zero_pp_rank_")
    number = rest.split("_")[0]
    return int(number) if number.isdecimal() else -1


def _model_files(folder: Path) -> list[Path]:
    """The model-state files in rank order (one below stage 3)."""
    files = sorted(folder.glob("*model_states.pt"), key=lambda path: (_rank_of(path), path.name))
    if not files:
        raise CheckpointError(
            f"{folder} holds no DeepSpeed checkpoint",
            found=", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "nothing there",
            expected="*_model_states.pt files",
        )
    parallel = [path.name for path in files if "mp_rank_" in path.name and "mp_rank_00_" not in path.name]
    parallel += [path.name for path in folder.glob("*expert_*_optim_states.pt")] + [
        path.name for path in folder.glob("layer_*-model_*states.pt")
    ]
    if parallel:
        raise CheckpointError(
            f"{folder} was saved with tensor, pipeline or expert parallelism, which is not supported",
            found=", ".join(sorted(parallel)[:4]),
            expected="data-parallel ZeRO files only",
        )
    if len({_rank_of(path) for path in files}) != len(files) or (len(files) > 1 and _rank_of(files[0]) == -1):
        raise CheckpointError(
            f"{folder} mixes files of several saves",
            found=", ".join(path.name for path in files[:4]),
            expected="the files of one save",
            fix="another checkpoint",
        )
    return files


def _optimizer_shards(folder: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Each rank's optimizer state in rank order, and its file; none at stage 0.

    Raises CheckpointError where one is missing, or of a run with another number of ranks.
    """
    files: dict[int, Path] = {}
    for path in sorted(folder.glob("*zero_pp_rank_*_optim_states.pt")):
        other = files.setdefault(_rank_of(path), path)
        if other != path:
            raise CheckpointError(f"{folder} mixes files of several saves", found=f"{other.name} beside {path.name}")
    shards, paths = [], [files[rank] for rank in sorted(files)]
    counts = []
    for path in paths:
        state = load_file(path).get("optimizer_state_dict")
        if not isinstance(state, dict) or "partition_count" not in state:
            raise CheckpointError(f"{path} holds no optimizer state of DeepSpeed's ZeRO")
        shards.append(state)
        count = state["partition_count"]
        counts.append(int(max(count)) if isinstance(count, Sequence) else int(count))
    for path, count in zip(paths, counts, strict=True):
        if count != counts[0]:
            raise CheckpointError(
                f"{folder} mixes shards of runs with other numbers of ranks",
                found=f"{path.name} of {count} ranks beside {paths[0].name} of {counts[0]}",
                expected="the files of one save",
                fix="another checkpoint",
            )
    if counts and sorted(files) != list(range(counts[0])):
        missing = sorted(set(range(counts[0])) - set(files))
        raise CheckpointError(
            f"{folder} is incomplete" if missing else f"{folder} mixes shards of several saves",
            found=f"optimizer shards of ranks {sorted(files)}"
            + (f"; no *zero_pp_rank_{missing[0]}_*_optim_states.pt" if missing else ""),
            expected=f"ranks 0 to {counts[0] - 1}",
        )
    return shards, paths


def _stage_of(shards: Sequence[Mapping[str, Any]]) -> int:
    if not shards:
        return 0
    # DeepSpeed's BF16_Optimizer, which it takes for stage 1 with fp32 gradients, does not name its stage.
    stage = shards[0].get("zero_stage", 1)
    return int(stage.value if isinstance(stage, enum.Enum) else stage)


def _loss_scaler(held: Any) -> dict[str, Any]:
    stated = held if isinstance(held, Mapping) else vars(held) if isinstance(held, _StandIn) else {}
    return {key: stated[key] for key in _SCALER if key in stated}


def _averages(folder: Path, ranks: int) -> list[list[Tensor]]:
    """Each rank's running averages, in the layout of its masters: by group, one flat tensor or a list of its parts."""
    paths = [folder / AVERAGE_FILE.format(rank) for rank in range(ranks)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} holds no running averages of the weights"
            if len(missing) == ranks
            else f"{folder} is incomplete",
            found=f"no {', '.join(missing[:4])}",
            expected="a run that was trained with an EMA",
            fix="--weights last, or another checkpoint",
        )
    averages = []
    for path in paths:
        groups = load_file(path).get("groups")
        if not isinstance(groups, Sequence):
            raise CheckpointError(f"checkpoint file {path}", found=type(groups).__name__, expected='a list "groups"')
        averages.append([part for group in groups for part in ([group] if isinstance(group, Tensor) else group)])
    return averages


def _manifest(folder: Path) -> dict[str, Any]:
    """dsvid's manifest.json, empty where there is none. Its hashes are `checkpoint.verify`'s matter."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = read_json(path)
    except (OSError, DocumentError) as error:
        raise CheckpointError(f"{path} cannot be read", found=str(error)) from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} cannot be read", found=type(manifest).__name__, expected="a JSON object")
    return manifest
