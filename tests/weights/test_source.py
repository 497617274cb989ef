"""Opening files: layouts, damage, code that must not run, and memory that is given back."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.weights.folder import write_folder
from dsvid.weights.source import open_weights

STATE = {"blocks.0.a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def _same(path: Path) -> None:
    tensors = open_weights(path).tensors
    assert set(tensors) == set(STATE)
    assert all(torch.equal(tensors[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("key", ["model", "module", "model_state", "state_dict", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_at_any_of_the_known_places(key: str, zipped: bool, tmp_path: Path) -> None:
    rest = {"epoch": 3, "args": argparse.Namespace(lr=1.0), "optimizer": {"state": {}}}
    torch.save({key: STATE, **rest} if key else STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    _same(tmp_path / "w.pth")


def test_safetensors_and_folders(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    _same(tmp_path / "w.safetensors")
    for name in ("model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "videomae", "hidden_size": 4}))
        if name.endswith("bin"):
            torch.save(STATE, folder / name)
        else:
            save_file(STATE, folder / name)
        _same(folder)
        assert open_weights(folder).hf == {"model_type": "videomae", "hidden_size": 4}
        assert open_weights(folder / name).hf is not None


def test_our_own_folder_says_what_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path / "run" / "weights", dict(STATE), {"model": {"arch": "vit_micro"}})
    for path in (tmp_path / "run", tmp_path / "run" / "weights", tmp_path / "run" / "weights" / "model.safetensors"):
        assert open_weights(path).own == {"arch": "vit_micro"}
    torch.save({"model": STATE, "dsvid": {"model": {"arch": "vit_tiny"}}}, tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").own == {"arch": "vit_tiny"}


class _Shell:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, ("touch executed",))


class _Code:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("open('executed', 'w')",))


@pytest.mark.parametrize(
    ("payload", "name"), [(_Shell(), "posix.system"), (_Code(), "exec"), (Path("x"), "pathlib.PosixPath")]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_would_be_run_or_built_is_named_and_is_not(
    payload: object, name: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "extra": payload}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        open_weights(tmp_path / "w.pth")
    assert name in str(caught.value.found)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
def test_a_truncated_file_is_named(name: str, share: float, tmp_path: Path) -> None:
    big = {"a": torch.randn(5000)}
    if name.endswith("pth"):
        torch.save(big, tmp_path / name)
    else:
        save_file(big, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=name):
        open_weights(tmp_path / name)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"lr": 0.1}}])
def test_files_without_tensors(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_weights(tmp_path / "w.pth")


def test_a_partitioned_checkpoint_is_told_what_to_do(tmp_path: Path) -> None:
    torch.save({"module": {"blocks.0.a": torch.empty(0)}}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError) as caught:
        open_weights(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert "dsvid consolidate" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        ({"mp_rank_00_model_states.pt": ""}, "dsvid consolidate"),
        ({"model.safetensors.index.json": "{}"}, "save_pretrained"),
        ({"notes.txt": ""}, ""),
        ({}, ""),
    ],
)
def test_folders_without_weights(files: dict[str, str], fix: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="holds no weights") as caught:
        open_weights(tmp_path)
    assert fix in str(caught.value.fix or "")


def test_a_folder_of_safetensors_without_a_description(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_weights(tmp_path)


def _resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells which pages are resident")
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_pages_are_given_back_and_can_be_read_again(name: str, tmp_path: Path) -> None:
    size = 32 << 20
    state = {key: torch.full((size // 4,), float(i)) for i, key in enumerate("abc")}
    if name.endswith("pth"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    file = open_weights(tmp_path / name)
    before = _resident_file_bytes()
    assert [float(file.tensors[key].sum()) / (size // 4) for key in "abc"] == [0.0, 1.0, 2.0]
    assert _resident_file_bytes() - before > 2 * size
    for key in "abc":
        file.release(key)
    assert _resident_file_bytes() - before < size // 4
    assert float(file.tensors["c"][1000]) == 2.0


def test_memory_that_is_no_file_is_left_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.full((1 << 20,), 3.0)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    file = open_weights(tmp_path / "w.pth")
    file.release("a")
    assert bool((file.tensors["a"] == 3.0).all())


def test_views_of_one_storage_come_out_right(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    shared: dict[str, Tensor] = {"whole": base, "column": base[:, 1], "transposed": base.t()}
    torch.save(shared, tmp_path / "w.pth")
    file = open_weights(tmp_path / "w.pth")
    for name, expected in shared.items():
        file.release(name)
        assert torch.equal(file.tensors[name], expected)
