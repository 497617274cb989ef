"""Checkpoints on one process: publishing, verification, walking back, pruning, a full disk."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dsvid import checkpoint as ck
from dsvid import checkpoint_files
from dsvid.errors import CheckpointError
from dsvid.runfolder import RunFolder
from dsvid.runtime import Ranks

ONE = Ranks(0, 1, 0)
CPU = torch.device("cpu")
OPTIM = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


class Engine:
    """Stands where the DeepSpeed engine stands in `save`: hands two files to the checkpoint engine."""

    device = CPU
    module = torch.nn.Linear(20, 20)
    param_names: dict[Any, str] = {}
    optimizer = SimpleNamespace(param_groups=[])

    def __init__(self, size: int = 500) -> None:
        self.checkpoint_engine = SimpleNamespace()
        self.size = size

    def zero_optimization(self) -> bool:
        return True

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any], save_latest: bool) -> None:
        assert save_latest is False, "DeepSpeed would point at shards that are not complete"
        assert client_state["dsvid"]["stage"] == 2
        for name, seed in (("mp_rank_00_model_states.pt", 1), (OPTIM, 2)):
            numbers = torch.randn(self.size, generator=torch.Generator().manual_seed(seed))
            self.checkpoint_engine.save({"numbers": numbers}, str(Path(folder) / tag / name))


@pytest.fixture(autouse=True)
def files_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests hold no optimizer state; that `find` opens real ones is another test's business."""
    monkeypatch.setattr(ck, "open_shards", lambda folder: None)


def save(run: RunFolder, step: int, *, keep: int = 10, engine: Engine | None = None, **more: Any) -> Path:
    facts = {"stage": 2, "samples": 8 * step}
    return ck.save(engine or Engine(), run, step=step, facts=facts, ranks=ONE, keep=keep, **more)


def saved(tmp_path: Path, steps: list[int], **more: Any) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    for step in steps:
        save(run, step, **more)
    return run


def names(run: RunFolder) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*"))


def test_a_saved_checkpoint_verifies_and_is_pointed_at(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    manifest = ck.verify(run.checkpoints / "step-00000004")
    assert (manifest["step"], manifest["world_size"], manifest["stage"], manifest["samples"]) == (4, 1, 2, 32)
    assert set(manifest["files"]) == {"mp_rank_00_model_states.pt", OPTIM, "rng_rank_00000.pt"}
    assert manifest["files"][OPTIM]["bytes"] == (run.checkpoints / "step-00000004" / OPTIM).stat().st_size
    assert (run.checkpoints / "latest").read_text() == "step-00000004\n"
    assert not list(run.checkpoints.glob(".*"))


def damage_file(newest: Path, damage: str, name: str) -> None:
    file = newest / name
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(file.read_bytes()[:500])
    elif damage == "remove":
        file.unlink()
    elif damage == "link":
        file.rename(newest.parent / "elsewhere")
        file.symlink_to(newest.parent / "elsewhere")
    elif damage == "more":  # shards of another number of ranks beside the own ones
        (newest / "zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(file.read_bytes())


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", OPTIM, "rng_rank_00000.pt", ck.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "link", "more"])
def test_damage_is_found_and_the_one_before_is_used(damage: str, name: str, tmp_path: Path) -> None:
    run = saved(tmp_path, [4, 8])
    newest = run.checkpoints / "step-00000008"
    if name == ck.MANIFEST and damage == "flip":
        (newest / name).write_text((newest / name).read_text().replace('"samples": 64', '"samples": 65'))
    elif name == ck.MANIFEST and damage in ("link", "truncate"):
        (newest / name).write_text((newest / name).read_text()[:300] if damage == "truncate" else "{}")
    else:
        damage_file(newest, damage, name)
    with pytest.raises(CheckpointError) as caught:
        ck.verify(newest)
    assert str(newest) in str(caught.value)
    found = ck.newest_verified(run.checkpoints)
    assert found is not None and found.step == 4


def test_a_size_is_compared_by_every_rank_whoever_hashes_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path, [4]).checkpoints / "step-00000004"
    listed = sorted(checkpoint_files.read_manifest(folder)["files"])
    damage_file(folder, "truncate", listed[0])
    for part in range(2):  # the second rank hashes other files
        with pytest.raises(CheckpointError, match="wrong size"):
            ck.verify(folder, part, 2)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "a\\b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    path = run.checkpoints / "step-00000004" / ck.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    path.write_text(json.dumps({**manifest, "self_sha256": ck.own_hash(manifest)}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        ck.verify(path.parent)


def test_each_of_many_ranks_hashes_its_part(tmp_path: Path) -> None:
    folder = saved(tmp_path, [4]).checkpoints / "step-00000004"
    damage_file(folder, "flip", OPTIM)
    verdicts = []
    for part in range(3):
        try:
            ck.verify(folder, part, 3)
            verdicts.append("good")
        except CheckpointError:
            verdicts.append("bad")
    assert sorted(verdicts) == ["bad", "good", "good"]


def test_only_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / "step-00000004" / OPTIM).unlink()
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match="none of 1 checkpoints is intact"):
            ck.find(run, resume, ONE)


def test_a_verified_checkpoint_that_cannot_be_opened_is_walked_back_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, [4, 8])

    def open_shards(folder: Path) -> None:
        if folder.name == "step-00000008":
            raise CheckpointError("another layout")

    monkeypatch.setattr(ck, "open_shards", open_shards)
    found = ck.find(run, "auto", ONE)
    assert found is not None and found.step == 4


def test_a_file_server_that_stumbles_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, calls = saved(tmp_path, [4, 8]), ck.verify, []

    def verify(folder: Path, *part: int) -> dict[str, Any]:
        calls.append(folder)
        if len(calls) < 3:
            raise OSError(116, "Stale file handle")
        return real(folder, *part)

    monkeypatch.setattr(ck, "verify", verify)
    monkeypatch.setattr(ck.time, "sleep", lambda seconds: None)
    found = ck.find(run, "auto", ONE)
    assert found is not None and found.step == 8 and len(calls) == 3


def test_resume_must_and_auto_in_an_empty_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    assert ck.find(run, "auto", ONE) is None
    with pytest.raises(CheckpointError, match="--resume must"):
        ck.find(run, "must", ONE)


@pytest.mark.parametrize("pointer", ["", "step-00000099\n", "\x00\xff garbage", None])
def test_a_wrong_pointer_is_said_and_does_not_matter(
    pointer: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ck.log, "propagate", True)
    run = saved(tmp_path, [4, 8])
    if pointer is None:
        (run.checkpoints / "latest").unlink()
    else:
        (run.checkpoints / "latest").write_text(pointer)
    found = ck.find(run, "auto", ONE)
    assert found is not None and found.step == 8
    assert "newest intact checkpoint is step-00000008" in caplog.text


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    run = saved(tmp_path, [4, 8])
    os.utime(run.checkpoints / "step-00000004", (2e9, 2e9))
    found = ck.find(run, "auto", ONE)
    assert found is not None and found.step == 8


def test_a_folder_without_a_manifest_was_never_published(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / ".tmp-step-00000008").mkdir()
    found = ck.find(run, "auto", ONE)
    assert found is not None and found.step == 4
    save(run, 8)
    assert not list(run.checkpoints.glob(".tmp*"))


def test_the_newest_and_the_milestones_are_kept(tmp_path: Path) -> None:
    assert names(saved(tmp_path / "a", [1, 2, 3, 4], keep=2)) == [3, 4]
    assert names(saved(tmp_path / "b", [10, 15, 20, 25, 30, 35], keep=1, keep_every=20)) == [20, 35]


def test_the_last_good_one_stays_until_the_new_one_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path, [4])
    published = ck._publish

    def publish_and_lose_a_bit(folder: Path, target: Path, *more: Any) -> None:
        published(folder, target, *more)
        damage_file(target, "flip", OPTIM)

    monkeypatch.setattr(ck, "_publish", publish_and_lose_a_bit)
    with pytest.raises(ck.SaveFailed, match="check the disk"):
        save(run, 8, keep=1)
    found = ck.newest_verified(run.checkpoints)
    assert found is not None and found.step == 4


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    run = saved(tmp_path, [4])
    (run.checkpoints / "step-00000004" / OPTIM).write_bytes(b"damaged")
    save(run, 4)
    assert ck.verify(run.checkpoints / "step-00000004")["step"] == 4


def test_a_damaged_newer_checkpoint_never_outlives_the_one_just_written(tmp_path: Path) -> None:
    run = saved(tmp_path, [4, 12])
    (run.checkpoints / "step-00000012" / OPTIM).unlink()
    save(run, 8, keep=1)
    assert names(run) == [8]
    assert (run.checkpoints / "latest").read_text() == "step-00000008\n"
    assert (run.checkpoints / "damaged-step-00000012").is_dir(), "set aside for whoever wants to look"


def test_shards_that_stayed_on_another_node_are_not_published(tmp_path: Path) -> None:
    run = saved(tmp_path, [])
    folder = run.checkpoints / ".tmp-step-00000004"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="all nodes share"):
        ck._publish(folder, run.checkpoints / "step-00000004", {}, {OPTIM: {"bytes": 5, "sha256": ""}})
    assert not list(run.checkpoints.glob("step-*"))


# ---- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture()
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB: a save asks for 16 MB of spare room, so that one of 20 MB fits and two do not."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


MEGA = 1 << 20


def test_no_room_is_said_with_the_bytes_before_anything_is_written(small_disk: Path) -> None:
    run = saved(small_disk, [4])
    (small_disk / "ballast").write_bytes(b"x" * 20 * MEGA)
    engine = Engine(2 * MEGA)
    engine.module = torch.nn.Linear(1 << 11, 1 << 10)  # 8 MB that the estimate knows of
    with pytest.raises(ck.SaveFailed, match="no room") as caught:
        save(run, 8, engine=engine)
    needed, free, more = (
        int(n)
        for n in re.search(r"found: +(?:.*?)(\d+) bytes free.*?(\d+) bytes: (\d+) more", str(caught.value), re.S).group(
            2, 1, 3
        )
    )
    assert needed - free == more and free < 20 * MEGA
    assert needed == pytest.approx(8 * MEGA + ck.SPARE_BYTES, abs=20_000)
    assert names(run) == [4] and ck.verify(run.checkpoints / "step-00000004")
    assert not list(run.checkpoints.glob(".tmp*"))


def test_older_checkpoints_make_room_and_the_last_good_one_never_goes(small_disk: Path) -> None:
    run = saved(small_disk, [2, 4, 6], engine=Engine(MEGA))  # 8 MB each
    damage_file(run.checkpoints / "step-00000006", "flip", OPTIM)
    save(run, 8, engine=Engine(MEGA))
    assert names(run) == [2, 4, 8], "the damaged one goes first"
    (small_disk / "ballast").write_bytes(b"x" * (ck.shutil.disk_usage(small_disk).free - MEGA))
    large = Engine()
    large.module = torch.nn.Linear(1 << 11, 1 << 10)  # 8 MB that the estimate knows of
    with pytest.raises(ck.SaveFailed, match="no room"):
        save(run, 10, engine=large)
    assert names(run) == [8]
    found = ck.newest_verified(run.checkpoints)
    assert found is not None and found.step == 8


def test_a_disk_that_fills_up_while_saving_leaves_nothing_half_written(small_disk: Path) -> None:
    run = saved(small_disk, [4])
    with pytest.raises(ck.SaveFailed, match="No space left on device"):
        save(run, 8, engine=Engine(8 * MEGA))  # 64 MB that the estimate does not know of
    assert names(run) == [4] and not list(run.checkpoints.glob(".tmp*"))
    assert ck.verify(run.checkpoints / "step-00000004")
    save(run, 8)  # and the next one succeeds
    assert names(run) == [4, 8]


# ---- what a resume checks and restores -----------------------------------------------------------------------------


def test_another_list_or_precision_is_refused_another_topology_is_not(tmp_path: Path) -> None:
    run = saved(tmp_path, [])
    facts = {"stage": 2, "precision": "bf16", "train_list": "abc"}
    ck.save(Engine(), run, step=4, facts=facts, ranks=ONE, keep=2)
    found = ck.find(run, "must", ONE)
    assert found is not None
    ck.check_continues(found, {**facts, "stage": 3})
    with pytest.raises(CheckpointError, match="another precision"):
        ck.check_continues(found, {**facts, "precision": "fp32"})
    with pytest.raises(CheckpointError, match=r"data\.train is not the list"):
        ck.check_continues(found, {**facts, "train_list": "xyz"})


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    folder = saved(tmp_path, [4]).checkpoints / "step-00000004"
    expected = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    ck._restore_generators(folder / "rng_rank_00000.pt", CPU)
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == expected
    ck._restore_generators(folder / "rng_rank_00001.pt", CPU)  # a rank that the saved run did not have
