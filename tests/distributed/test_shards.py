"""Real DeepSpeed files of every stage, precision and number of ranks, read back number by number, and damaged ones."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file as load_safetensors

from dsvid.cli import main
from dsvid.errors import CheckpointError
from dsvid.weights.consolidate import consolidate
from dsvid.weights.shards import open_shards
from tests.distributed.conftest import finish, launch, must_succeed

CASES = [f"{kind}-z{stage}" for kind in ("fp32", "bf16") for stage in range(4)] + ["z3-small", "z0-flat"]
ODD = ["z3-kept", "z2-offload", "z3-offload", "z1-bf16opt"]
# What is saved together by how many ranks: each start costs ten seconds, and each engine another. The first is enough
# for the fast tests.
SAVED: list[tuple[int, list[str]]] = [
    (2, [*CASES, "z2-fresh"]),
    (2, [*ODD, "z2-robin"]),
    (1, ["bf16-z0", "fp32-z2", "bf16-z3", "z0-flat"]),
    (4, ["fp32-z0", "fp32-z1", "bf16-z2", "bf16-z3", "z3-small", "z1-bf16opt"]),
]
EACH = [
    pytest.param(case, world, marks=[pytest.mark.long, pytest.mark.slow] if number else [])
    for number, (world, cases) in enumerate(SAVED)
    for case in cases
    if case in CASES + ODD
]
FEW = ["bf16-z0", "bf16-z2", "bf16-z3"]


def make(out: Path, world: int, cases: list[str]) -> None:
    command = [sys.executable, str(Path(__file__).with_name("many_layouts.py")), str(out), *cases]
    must_succeed(finish(launch(world, command, out)))


class Layouts:
    """Gives the checkpoint folder of a case, with `held.pt`, what the engine held. Saved when it is first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self.factory = factory
        self.made: dict[int, Path] = {}

    def __call__(self, case: str, world: int = 2) -> Path:
        (number,) = [n for n, (ranks, cases) in enumerate(SAVED) if ranks == world and case in cases]
        if number not in self.made:
            out = self.factory.mktemp(f"layouts-{number}")
            make(out, *SAVED[number])
            self.made[number] = out
        return self.made[number] / case


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    return Layouts(tmp_path_factory)


def held(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "held.pt", weights_only=True))


@pytest.mark.parametrize(("case", "world"), EACH)
def test_every_number_is_the_engine_s(case: str, world: int, layouts: Layouts) -> None:
    folder = layouts(case, world)
    expected, shards = held(folder), open_shards(folder)
    assert shards.world == world and shards.stage == int(case[case.index("z") + 1])
    trained = [name for group in expected["groups"] for name in group]
    assert sorted(shards.shapes) == sorted(trained)
    for kind in ("master", "exp_avg", "exp_avg_sq", "average"):
        assert shards.has(kind)
        for name in trained:
            wanted = expected["master"][name] + 1 if kind == "average" else expected[kind][name]
            assert not torch.isnan(wanted).any()
            assert list(shards.shapes[name]) == expected["shapes"][name]
            numel = wanted.numel()
            for start, stop in {(0, numel), (0, 1), (numel - 1, numel), (numel // 3, numel // 3 * 2), (1, numel // 2)}:
                out = torch.full((max(0, stop - start),), math.nan)
                shards.read(kind, name, start, out)
                assert torch.equal(out, wanted[start : max(start, stop)]), (kind, name, start, stop)


@pytest.mark.parametrize(("case", "world"), EACH)
def test_the_rest_is_there_too(case: str, world: int, layouts: Layouts) -> None:
    folder = layouts(case, world)
    expected, shards = held(folder), open_shards(folder)
    assert shards.groups == expected["groups"]
    assert [{k: group[k] for k in ("lr", "weight_decay")} for group in shards.hypers] == expected["hypers"]
    # At stage 0 in half precision DeepSpeed's constructor takes a step of its own, which dsvid's engine undoes.
    steps = {2.0, 3.0} if shards.stage == 0 else {2.0}
    assert all(shards.step_of(name) in steps for name in shards.shapes)
    assert set(shards.frozen) == set(expected["frozen"]) == {"still.weight", "still.bias"}
    for name, wanted in expected["frozen"].items():
        out = torch.empty(wanted.numel() - 2, dtype=wanted.dtype)
        shards.read_frozen(name, 1, out)
        assert torch.equal(out, wanted[1:-1]), name
    assert shards.buffers.keys() == {"mean", "seen"}, "those that are not persistent are not saved"
    assert all(torch.equal(shards.buffers[name], expected["buffers"][name]) for name in shards.buffers)
    assert shards.tied == {"aux.weight": "head.weight"}
    state = shards.module_state
    assert (state["global_steps"], state["global_samples"], state["skipped_steps"]) == (2, 8 * world, 0)
    assert state["dsvid"] == {"samples": 8} and state["lr_scheduler"]["last_epoch"] == 2
    assert "module" not in state


@pytest.mark.long
@pytest.mark.slow
def test_reordered_gradients_are_read_in_their_own_order(layouts: Layouts) -> None:
    """round_robin_gradients shuffles the flat row: DeepSpeed's addresses in memory are wrong then, its files not."""
    shards = open_shards(layouts("z2-robin"))
    for name, wanted in held(layouts("z2-robin"))["weights"].items():
        out = torch.empty(wanted.numel())
        shards.read("master", name, 0, out)
        assert torch.equal(out.bfloat16().float(), wanted), name


def test_before_the_first_step_there_are_no_moments(layouts: Layouts) -> None:
    shards = open_shards(layouts("z2-fresh"))
    assert shards.has("master") and not shards.has("exp_avg") and shards.step_of("scale") is None
    with pytest.raises(CheckpointError, match="holds no exp_avg"):
        shards.read("exp_avg", "scale", 0, torch.empty(1))


@pytest.mark.parametrize("case", FEW)
def test_what_lies_beyond_a_parameter_is_an_error(case: str, layouts: Layouts) -> None:
    shards = open_shards(layouts(case))
    for start, numel in ((0, 2), (1, 1)):
        with pytest.raises(CheckpointError, match="does not hold all of master of scale"):
            shards.read("master", "scale", start, torch.empty(numel))
    with pytest.raises(CheckpointError, match=r"still\.bias"):
        shards.read_frozen("still.bias", 10, torch.empty(4))
    with pytest.raises(CheckpointError, match="no trained parameter nothing"):
        shards.read("master", "nothing", 0, torch.empty(1))


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_stage_0_without_a_manifest(kind: str, layouts: Layouts, tmp_path: Path) -> None:
    """The weights can be read in fp32; which moment belongs to which parameter, DeepSpeed's files do not say."""
    folder = damaged(layouts, f"{kind}-z0", tmp_path)
    (folder / "manifest.json").unlink()
    shards, expected = open_shards(folder), held(folder)
    out = torch.empty(13 * 7)
    if kind == "fp32":
        shards.read("master", "first.weight", 0, out)
        assert torch.equal(out, expected["master"]["first.weight"])
    else:
        assert not shards.has("master")
        with pytest.raises(CheckpointError, match="no fp32 masters"):
            shards.read("master", "first.weight", 0, out)
    assert not shards.has("exp_avg")


# ---- the whole model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["last", "ema"])
@pytest.mark.parametrize("case", CASES)
def test_a_model_with_tied_frozen_and_buffers_comes_out_whole(
    case: str, weights: Literal["last", "ema"], layouts: Layouts
) -> None:
    folder = layouts(case)
    expected, state = held(folder), consolidate(folder, weights, prefix="")
    assert set(state) == {*expected["shapes"], "aux.weight", "mean", "seen"}
    for name, tensor in state.items():
        own = "head.weight" if name == "aux.weight" else name
        if own in expected["frozen"]:
            wanted = expected["frozen"][own].float()
        elif own in expected["buffers"]:
            wanted = expected["buffers"][own]
            wanted = wanted.float() if wanted.is_floating_point() else wanted
        else:
            wanted = expected["master"][own] + (weights == "ema")
        assert tensor.dtype == wanted.dtype and torch.equal(tensor.reshape(-1), wanted.reshape(-1)), name
        assert tensor.shape == state.entries[name][1] and tensor.dtype == state.entries[name][0]


@pytest.mark.parametrize("case", ["fp32-z0", "fp32-z1", "bf16-z2", "bf16-z3"])
def test_a_checkpoint_of_another_program(
    case: str, layouts: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a manifest, under its own names, found by the `latest` that DeepSpeed writes."""
    folder = damaged(layouts, case, tmp_path)
    path = tmp_path / "w.safetensors"
    words = ["consolidate", str(tmp_path), str(path), "--unverified"]
    (tmp_path / "latest").write_text("ck")
    assert main(words) == 2, "a manifest is there"
    assert "can be verified" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert main(["consolidate", str(folder), str(tmp_path / "w")]) == 2
    assert "--unverified" in capsys.readouterr().err
    assert main(words) == 0
    assert "not verified" in capsys.readouterr().out
    state, expected = load_safetensors(path), held(layouts(case))
    assert set(state) == {*expected["shapes"], "aux.weight", "mean", "seen"}
    for name in expected["master"]:
        assert torch.equal(state[name].reshape(-1), expected["master"][name]), name
    assert main(words) == 2, "it is not overwritten unasked"
    assert main([*words, "--overwrite"]) == 0
    assert main([*words[:2], str(tmp_path / "folder"), "--unverified"]) == 2


def test_half_precision_without_a_manifest_has_no_masters_at_stage_0(
    layouts: Layouts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(layouts, "bf16-z0", tmp_path)
    (folder / "manifest.json").unlink()
    assert main(["consolidate", str(folder), str(tmp_path / "w.safetensors"), "--unverified"]) == 2
    assert "no fp32 masters" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize("case", ["fp32-z1", "bf16-z2", "bf16-z3"])
def test_a_name_that_the_shards_do_not_hold_is_an_error(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path)
    for path in folder.glob("*model_states.pt"):
        content = torch.load(path, weights_only=True)
        content["param_shapes"][0].pop(next(iter(content["param_shapes"][0])))
        torch.save(content, path)
    with pytest.raises(CheckpointError):
        dict(consolidate(folder, prefix=""))


# ---- damaged folders -----------------------------------------------------------------------------------------------


def damaged(layouts: Layouts, case: str, tmp_path: Path, world: int = 2) -> Path:
    shutil.copytree(layouts(case, world), tmp_path / "ck")
    return tmp_path / "ck"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if path.name != "held.pt")


def use_everything(folder: Path) -> None:
    shards = open_shards(folder)
    for kind in ("master", "exp_avg", "average"):
        for name, shape in shards.shapes.items():
            shards.read(kind, name, 0, torch.empty(math.prod(shape)))
    for name, shape in shards.frozen.items():
        shards.read_frozen(name, 0, torch.empty(math.prod(shape)))


@pytest.mark.parametrize("case", FEW)
def test_a_truncated_file_is_named(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path)
    use_everything(folder)
    for path in files(folder):
        if case == "bf16-z0" and path.name == "ema_rank_00001.pt":
            continue  # every rank has the same; the first one's is read
        whole = path.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=path.name):
                use_everything(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize("case", FEW)
def test_a_missing_file_is_named(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path)
    for path in files(folder):
        if case == "bf16-z0" and path.name == "ema_rank_00001.pt":
            continue
        path.rename(tmp_path / "away")
        with pytest.raises(CheckpointError) as caught:
            use_everything(folder)
        rank = path.name.partition("rank_")[2].split("_")[0].removesuffix(".pt")
        assert "no DeepSpeed checkpoint" in str(caught.value) or rank in str(caught.value), path.name
        (tmp_path / "away").rename(path)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", ["bf16-z2", "bf16-z3"])
def test_shards_of_another_world_size_are_not_mixed_in(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path, world=4)
    for path in files(layouts(case)):  # a second save of fewer ranks into the same folder
        shutil.copy(path, folder)
    with pytest.raises(CheckpointError, match="mixes shards of runs with other numbers of ranks"):
        open_shards(folder)
    for name in [path.name for path in files(folder) if "rank_2" in path.name or "rank_3" in path.name]:
        (folder / name).unlink()
    open_shards(folder)
    shutil.copy(next(layouts(case, 4).glob("*rank_0_*optim_states.pt")), folder)
    with pytest.raises(CheckpointError, match="rank_1_mp_rank_00_optim_states.pt of 2 ranks"):
        open_shards(folder)


@pytest.mark.long
@pytest.mark.slow
def test_the_model_s_file_of_another_world_size_is_seen(layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, "bf16-z2", tmp_path)
    shutil.copy(layouts("bf16-z2", 4) / "mp_rank_00_model_states.pt", folder)
    with pytest.raises(CheckpointError, match="other numbers of ranks"):
        open_shards(folder)


@pytest.mark.parametrize("case", ["bf16-z2", "bf16-z3", "fp32-z2"])
def test_files_of_two_precisions_are_not_mixed(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path)
    other = ("fp32" if case.startswith("bf16") else "bf16") + case[4:]
    for path in files(layouts(other)):
        shutil.copy(path, folder)
    with pytest.raises(CheckpointError, match="mixes files of several saves"):
        open_shards(folder)


@pytest.mark.parametrize("case", ["bf16-z2", "bf16-z3"])
def test_a_shard_of_another_step_is_not_mixed_in(case: str, layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, case, tmp_path)
    path = next(folder.glob("*rank_1_*optim_states.pt"))
    content = torch.load(path, weights_only=False)
    state = content["optimizer_state_dict"]
    for entry in (state.get("base_optimizer_state") or state["optimizer_state_dict"])["state"].values():
        entry["step"] += 1
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="another step"):
        open_shards(folder)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("pwned",))


@pytest.mark.parametrize("case", FEW)
def test_a_file_that_would_run_code_is_refused(
    case: str, layouts: Layouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = damaged(layouts, case, tmp_path)
    for path in files(folder):
        if case == "bf16-z0" and path.name == "ema_rank_00001.pt":
            continue
        whole = path.read_bytes()
        torch.save({**torch.load(path, weights_only=False), "x": Evil()}, path, pickle_module=pickle)
        with pytest.raises(CheckpointError, match=path.name) as caught:
            use_everything(folder)
        assert f"{os.mkdir.__module__}.mkdir" in str(caught.value), "the object is named"
        path.write_bytes(whole)
    assert not (tmp_path / "pwned").exists()


def test_a_manifest_of_other_groups_is_refused(layouts: Layouts, tmp_path: Path) -> None:
    folder = damaged(layouts, "bf16-z0", tmp_path)
    path = folder / "manifest.json"
    groups = json.loads(path.read_text())["groups"]
    path.write_text(json.dumps({"groups": [groups[0] + groups[1], groups[2]]}))
    with pytest.raises(CheckpointError, match="not those of manifest.json"):
        open_shards(folder)
    path.write_text(json.dumps({"groups": [[*groups[0][:-1], "wrong"], *groups[1:]]}))
    with pytest.raises(CheckpointError, match="wrong"):
        open_shards(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing there"):
        open_shards(tmp_path / "none")
    torch.save({"module": {"a": torch.ones(1)}, "buffer_names": 3}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="not laid out as DeepSpeed's"):
        open_shards(tmp_path)
