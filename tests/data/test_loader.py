"""Batches are a pure function of (seed, step); broken clips, dying workers and evaluation views are dealt with."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import loader as loader_module
from dsvid.data import mix, order
from dsvid.data.loader import BadClips, TrainLoader, eval_batches
from dsvid.data.reader import ClipReader
from dsvid.data.sampling import dense_centre, dense_clip, dense_test
from dsvid.errors import DataError
from dsvid.recipe import AugmentConfig, DataConfig
from tests.data.numbered_videos import read_number
from tests.data.standin_streams import Streams

TOTAL = 8


@pytest.fixture(scope="module")
def clip_list(videos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "train.csv"
    path.write_text("".join(f"{videos}/v{i:02}.mp4 {i % 4}\n" for i in range(12)))
    return path


def config(clip_list: Path, **changes: object) -> DataConfig:
    settings = {"num_frames": 4, "sampling_rate": 2, "input_size": 32, "num_workers": 0, **changes}
    return DataConfig(train=str(clip_list), val=str(clip_list), test=str(clip_list), **settings)


def digest(batch: dict) -> list[tuple[str, int, int, int]]:
    rows = zip(batch["clip"], batch["seed"].tolist(), batch["label"].tolist(), batch["index"].tolist(), strict=True)
    return [(hashlib.sha1(clip.numpy().tobytes()).hexdigest(), *rest) for clip, *rest in rows]


def global_batches(settings: DataConfig, world: int, micro: int, start: int, steps: int, seed: int = 3) -> list[list]:
    """Steps start .. start+steps-1, each as the clips of all ranks in the order of the stream."""
    accumulation = TOTAL // (micro * world)
    found: list[list] = [[None] * TOTAL for _ in range(steps)]
    for rank in range(world):
        loader = TrainLoader(
            settings, seed=seed, batch_total=TOTAL, batch_micro=micro, rank=rank, world=world, start_step=start
        )
        batches = iter(loader)
        for step in range(steps):
            for number in range(accumulation):
                first = (number * world + rank) * micro
                found[step][first : first + micro] = digest(next(batches))
        loader.close()
    return found


@pytest.fixture(scope="module")
def expected(clip_list) -> list[list]:
    return global_batches(config(clip_list), world=1, micro=8, start=0, steps=6)


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("workers", [0, 3])
def test_the_global_batch_depends_on_seed_and_step_only(clip_list, expected, world, micro, workers):
    settings = config(clip_list, num_workers=workers)
    assert global_batches(settings, world, micro, start=0, steps=3) == expected[:3]


@pytest.mark.parametrize("start", range(6))
def test_a_restart_at_any_step_goes_on_with_the_same_clips(clip_list, expected, start):
    assert global_batches(config(clip_list), world=2, micro=2, start=start, steps=6 - start) == expected[start:]


def test_another_seed_gives_other_clips_and_both_decoders_the_same(clip_list, expected):
    assert global_batches(config(clip_list), 1, 8, 0, 1, seed=4) != expected[:1]
    assert global_batches(config(clip_list, decoder="pyav"), 1, 8, 0, 1) == expected[:1]


def test_every_video_is_seen_once_per_pass_and_clips_differ_between_passes(expected):
    clips = [clip for step in expected for clip in step]
    indices = [clip[3] for clip in clips]
    for first in (0, 12, 24, 36):
        assert sorted(indices[first : first + 12]) == list(range(12))
    assert indices[:12] != indices[12:24]
    assert len({clip[0] for clip in clips}) > 40 and len({clip[1] for clip in clips}) == len(clips)
    assert all(label == index % 4 for _, _, label, index in clips)


def test_nothing_depends_on_or_touches_the_global_generators(clip_list, expected):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert global_batches(config(clip_list, num_workers=2), 1, 8, 0, 1) == expected[:1]
    assert torch.equal(before, torch.random.get_rng_state())


def test_repeated_augmentation_cuts_several_clips_from_the_same_frames(clip_list):
    settings = config(clip_list, num_sample=4)
    loader = TrainLoader(settings, seed=0, batch_total=8, batch_micro=8)
    assert loader.steps_per_epoch == 6
    batch = next(iter(loader))
    assert len(set(batch["index"].tolist())) == 2 and len(set(batch["seed"].tolist())) == 8
    assert batch["index"].tolist() == sorted(batch["index"].tolist(), key=batch["index"].tolist().index)
    assert len({clip[0] for clip in digest(batch)}) == 8
    halves = global_batches(settings, 2, 4, 0, 2)
    assert halves == global_batches(settings, 1, 8, 0, 2)
    with pytest.raises(DataError, match=r"batch\.micro=6[\s\S]*batch\.micro=8"):
        TrainLoader(settings, seed=0, batch_total=6, batch_micro=6)


def test_frames_of_repeats_are_the_same(clip_list):
    settings = config(clip_list, num_sample=4, crop="center", input_size=64)
    batch = next(iter(TrainLoader(settings, seed=0, batch_total=4, batch_micro=4)))
    assert all(torch.equal(batch["clip"][0], clip) for clip in batch["clip"])


def test_limits_and_epochs(clip_list):
    loader = TrainLoader(config(clip_list, train_limit=5), seed=0, batch_total=5, batch_micro=5)
    assert loader.dataset_size == 5 and loader.steps_per_epoch == 1
    assert sorted(next(iter(loader))["index"].tolist()) == [0, 1, 2, 3, 4]
    assert TrainLoader(config(clip_list), seed=0, batch_total=4, batch_micro=4).steps_per_epoch == 3
    longer = TrainLoader(config(clip_list), seed=0, batch_total=4, batch_micro=4, samples_per_epoch=40)
    assert longer.steps_per_epoch == 10
    assert TrainLoader(config(clip_list), seed=0, batch_total=64, batch_micro=64).steps_per_epoch == 1


def shown(batch: dict) -> list[list[int]]:
    """Numbers of the frames that each clip shows, read from its pixels; the crops must keep the whole picture."""
    numbers = zip(batch["clip"], batch["index"].tolist(), strict=True)
    return [[read_number(frame.numpy()) - 64 * index for frame in clip] for clip, index in numbers]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_the_clip_shows_the_frames_that_the_rule_picks_of_the_video_that_index_names(clip_list, decoder):
    settings = config(clip_list, crop="center", input_size=80, sampling="dense", decoder=decoder)
    starts = set()
    for batch, _ in zip(TrainLoader(settings, seed=0, batch_total=8, batch_micro=8), range(5), strict=False):
        for numbers in shown(batch):
            ends = [end for end in range(8, 30) if dense_clip(30, 4, 2, end).tolist() == numbers]
            assert len(ends) == 1, f"{numbers} is no clip of the rule"
            starts.add(ends[0])
    assert len(starts) > 12
    for batch in eval_batches(settings, "val", batch=4):
        assert shown(batch) == [dense_centre(30, 4, 2).tolist()] * 4
    views = next(eval_batches(settings, "test", segments=3, batch=3))
    assert shown(views) == [dense_test(30, 4, 2, 3, segment).tolist() for segment in range(3)]


# ---- augmented and mixed -------------------------------------------------------------------------------------------

AUGMENT = {
    "policy": "rand-m7-n4-mstd0.5-inc1",
    "erase_prob": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_prob": 0.9,
}


def fine_tuning(clip_list: Path, **changes: object) -> DataConfig:
    changes = {"crop": "random_resized", "flip": 0.5, "augment": AugmentConfig(**AUGMENT), **changes}
    return config(clip_list, **changes)


def mixed_stream(settings: DataConfig, world: int, micro: int, start: int, steps: int) -> list[list]:
    """Like global_batches, with each clip's lam and its partner's label."""
    found: list[list] = [[None] * TOTAL for _ in range(steps)]
    for rank in range(world):
        loader = TrainLoader(
            settings, seed=3, batch_total=TOTAL, batch_micro=micro, rank=rank, world=world, start_step=start
        )
        batches = iter(loader)
        for step in range(steps):
            for number in range(TOTAL // (micro * world)):
                first = (number * world + rank) * micro
                batch = next(batches)
                assert batch["partner_label"].dtype == torch.int64 and batch["lam"].dtype == torch.float32
                mixed = zip(batch["partner_label"].tolist(), batch["lam"].tolist(), strict=True)
                found[step][first : first + micro] = [(*a, *b) for a, b in zip(digest(batch), mixed, strict=True)]
        loader.close()
    return found


@pytest.mark.parametrize("repeats", [1, 2])
def test_mixed_batches_depend_on_seed_and_step_only(clip_list, repeats):
    whole = mixed_stream(fine_tuning(clip_list, num_sample=repeats), 1, 8, 0, 4)
    # Micro-batches of one video, too: its partner then belongs to another rank's batch.
    ways = [(1, 4, 0), (2, 4, 2), (2, 2, 0), (4, 2, 2)] + ([(8, 1, 0), (1, 1, 2)] if repeats == 1 else [(1, 2, 0)])
    for world, micro, workers in ways:
        settings = fine_tuning(clip_list, num_sample=repeats, num_workers=workers)
        assert mixed_stream(settings, world, micro, 0, 2) == whole[:2]
        assert mixed_stream(settings, world, micro, 3, 1) == whole[3:]


@pytest.mark.parametrize("repeats", [1, 2])
def test_pairs_are_neighbours_in_the_stream_and_share_one_draw(clip_list, repeats):
    kinds = set()
    for batch, _ in zip(
        TrainLoader(fine_tuning(clip_list, num_sample=repeats), seed=0, batch_total=8, batch_micro=8),
        range(4),
        strict=False,
    ):
        partner = mix.partners(8, repeats)
        assert torch.equal(batch["partner_label"], batch["label"][partner])
        assert (batch["index"][partner] != batch["index"]).sum() >= 6
        assert torch.equal(batch["lam"], batch["lam"][partner])
        kinds |= {bool(lam < 1) for lam in batch["lam"]}
    assert kinds == {False, True}


def test_both_kinds_of_mix_are_in_the_clips(clip_list):
    """Against the same clips without mixing."""
    plain = next(
        iter(TrainLoader(fine_tuning(clip_list, augment=AugmentConfig()), seed=1, batch_total=8, batch_micro=8))
    )
    assert not {"partner_label", "lam"} & set(plain)
    for cutmix in (0.0, 1.0):
        how = AugmentConfig(mixup=1.0 - cutmix, cutmix=cutmix)
        batch = next(iter(TrainLoader(fine_tuning(clip_list, augment=how), seed=1, batch_total=8, batch_micro=8)))
        assert torch.equal(batch["seed"], plain["seed"]) and torch.equal(batch["label"], plain["label"])
        for first in range(0, 8, 2):
            drawn = mix.draw_mix(how, 32, 32, np.random.default_rng(order.mix(int(plain["seed"][first]), 4)))
            pair = plain["clip"][first : first + 2]
            if drawn.box is None:
                wanted = drawn.lam * pair.double() + (1 - drawn.lam) * pair.flip(0).double()
                assert float((batch["clip"][first : first + 2].double() - wanted).abs().max()) <= 0.5
            else:
                top, bottom, left, right = drawn.box
                wanted = pair.clone()
                wanted[:, :, top:bottom, left:right] = pair.flip(0)[:, :, top:bottom, left:right]
                assert torch.equal(batch["clip"][first : first + 2], wanted)
            assert batch["lam"][first].item() == pytest.approx(drawn.lam)


def test_evaluation_is_never_augmented(clip_list):
    plain, augmented = (
        list(eval_batches(settings, "val", batch=12)) for settings in (config(clip_list), fine_tuning(clip_list))
    )
    assert [digest(batch) for batch in plain] == [digest(batch) for batch in augmented]
    assert "lam" not in augmented[0]


def test_augmenting_leaves_kept_frames_as_they_are(clip_list):
    how = AugmentConfig(erase_prob=1.0)
    streams = [
        iter(
            TrainLoader(
                config(clip_list, crop="center", augment=how, cache_mb=mb), seed=0, batch_total=6, batch_micro=6
            )
        )
        for mb in (0, 50)
    ]
    for _ in range(6):
        assert digest(next(streams[0])) == digest(next(streams[1]))


@pytest.fixture(scope="module")
def damaged_list(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "text.mp4").write_text("no video\n" * 300)
    (folder / "empty.mp4").write_bytes(b"")
    lines = [f"{videos}/v{i:02}.mp4 {i}" for i in range(10)] + ["text.mp4 10", "empty.mp4 11"]
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def test_an_unreadable_clip_is_replaced_the_same_way_everywhere(damaged_list):
    settings = config(damaged_list)
    whole = global_batches(settings, 1, 8, 0, 6)
    assert global_batches(config(damaged_list, num_workers=3), 4, 2, 0, 6) == whole
    assert global_batches(settings, 2, 2, 4, 2) == whole[4:]
    assert {clip[3] for step in whole for clip in step} <= set(range(10))
    assert len({clip[1] for step in whole for clip in step}) == 48, "the replaced clips have their own seeds"


def test_unreadable_clips_are_recorded_counted_and_stop_the_run(damaged_list, tmp_path):
    loader = TrainLoader(config(damaged_list, num_workers=2), seed=0, batch_total=4, batch_micro=4)
    batches = iter(loader)
    patient = BadClips(tmp_path / "bad_clips.jsonl", max_fraction=0.01, grace=2, rank=5)
    strict = BadClips(tmp_path / "other.jsonl", max_fraction=0.01, grace=1)
    generous = BadClips(tmp_path / "third.jsonl", max_fraction=0.5, grace=0)
    new = []
    for _ in range(9):
        batch = next(batches)
        new += patient.add(batch)
        strict.add(batch)
        generous.add(batch)
    loader.close()
    lines = [json.loads(line) for line in (tmp_path / "bad_clips.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).name for line in lines} == {"text.mp4", "empty.mp4"}
    assert {line["rank"] for line in lines} == {5} and {line["frames"] for line in lines} == {None}
    causes = {Path(line["path"]).name: line["error"] for line in lines}
    assert "cannot be decoded" in causes["text.mp4"] and "0 bytes" in causes["empty.mp4"]
    assert len(new) == 2 and len(lines) >= 6 and patient.bad == len(lines) and patient.seen == 36
    assert patient.verdict() is None and generous.verdict() is None
    error = strict.verdict()
    assert error is not None and error.exit_code == 2
    assert "text.mp4" in str(error) and "empty.mp4" in str(error) and "data.max_bad_fraction" in str(error)


def test_a_clip_whose_frames_are_lost_is_recorded_with_its_frame_range(videos, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (tmp_path / "list.csv").write_text(f"frames 100 0\n{videos}/v00.mp4 1\n")
    batch = next(iter(TrainLoader(config(tmp_path / "list.csv"), seed=0, batch_total=4, batch_micro=4)))
    assert batch["bad"] and all(0 <= record["frames"][0] < record["frames"][1] < 100 for record in batch["bad"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_list_without_one_readable_video_ends_with_the_causes(tmp_path, workers):
    (tmp_path / "list.csv").write_text("".join(f"gone_{i}.mp4 0\n" for i in range(30)))
    loader = TrainLoader(config(tmp_path / "list.csv", num_workers=workers), seed=0, batch_total=4, batch_micro=4)
    with pytest.raises(DataError, match=r"10 clips in a row[\s\S]*gone_\d+\.mp4: no such file") as caught:
        next(iter(loader))
    assert "Traceback" not in str(caught.value)
    loader.close()


# ---- evaluation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_view_stands_once_over_all_ranks_and_all_ranks_have_as_many_batches(clip_list, world, workers):
    settings = config(clip_list, num_workers=workers)
    views = []
    lengths = set()
    for rank in range(world):
        batches = list(eval_batches(settings, "test", segments=2, crops=3, rank=rank, world=world, batch=5))
        lengths.add(len(batches))
        for batch in batches:
            assert batch["clip"].shape == (5, 4, 32, 32, 3)
            keep = batch["weight"] > 0
            views += list(zip(*(batch[name][keep].tolist() for name in ("index", "segment", "crop")), strict=True))
    assert len(lengths) == 1
    assert sorted(views) == [(v, s, c) for v in range(12) for s in range(2) for c in range(3)]


def test_backwards_and_still(clip_list):
    forwards, backwards, still = (
        next(eval_batches(config(clip_list, sampling_rate=4), "val", batch=4, **how))["clip"]
        for how in ({}, {"reverse": True}, {"freeze": True})
    )
    assert torch.equal(backwards, forwards.flip(1)) and not torch.equal(backwards, forwards)
    assert torch.equal(still, forwards[:, 2:3].expand_as(forwards))


def test_evaluation_has_no_chance_in_it(clip_list):
    settings = config(clip_list, crop="random")
    first, again = (next(eval_batches(settings, "val", batch=12)) for _ in range(2))
    assert digest(first) == digest(again) and len({clip[0] for clip in digest(first)}) == 12


def test_an_unreadable_view_has_no_weight_and_is_reported(damaged_list):
    batches = list(eval_batches(config(damaged_list), "test", segments=1, crops=3, batch=6))
    weight = torch.cat([batch["weight"] for batch in batches])
    assert weight.tolist() == [1.0] * 30 + [0.0] * 6
    bad = [record for batch in batches for record in batch["bad"]]
    assert [Path(record["path"]).name for record in bad] == ["text.mp4", "empty.mp4"]
    assert [record["clips"] for record in bad] == [3, 3]


# ---- processes -----------------------------------------------------------------------------------------------------


def workers_of(loader: TrainLoader) -> list:
    return loader.processes


def kill_in_another_video(worker, videos):
    """Kill a process that is at none of `videos`: of one that gets two killed the clips are not the same."""
    while True:
        os.kill(worker.process.pid, signal.SIGSTOP)
        while Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        video = worker.at()[0]
        if video < 0 or video not in videos:  # below 0: it is at none
            videos.add(video)
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.join()
            return
        os.kill(worker.process.pid, signal.SIGCONT)
        time.sleep(0.01)


def test_a_killed_worker_is_replaced_and_the_clips_are_the_same(clip_list, expected):
    loader = TrainLoader(config(clip_list, num_workers=2), seed=3, batch_total=8, batch_micro=8)
    batches, found, killed, notes, videos = iter(loader), [], [], [], set()
    for _ in range(6):
        batch = next(batches)
        found.append(digest(batch))
        notes += [note["note"] for note in batch["notes"]]
        if len(found) in (1, 4):
            worker = loader._running[-1].workers.workers[1]
            killed.append(worker.process)
            kill_in_another_video(worker, videos)
    assert found == expected and not set(killed) & set(workers_of(loader))
    died = [f"loader worker 1 (pid {process.pid}) died: killed by SIGKILL" for process in killed]
    assert len(notes) == 2 and all(note.startswith(text) for note, text in zip(notes, died, strict=True))
    loader.close()


class Sick(ClipReader):
    """A reader whose decoder loops for ever in one video and crashes in another."""

    def frames(self, index, choose):
        if self.path(index).endswith("v03.mp4"):
            ctypes.PyDLL(None).sleep(1000)
        if self.path(index).endswith("v07.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().frames(index, choose)


def test_a_video_that_hangs_and_one_that_crashes_are_replaced_and_recorded(clip_list, tmp_path):
    settings = config(clip_list, num_workers=2, clip_limit_s=1)
    found = []
    for micro in (4, 8):
        reader = Sick(settings, "train")
        loader = TrainLoader(settings, seed=3, batch_total=8, batch_micro=micro, reader=reader)
        bad, clips = BadClips(tmp_path / f"{micro}.jsonl", max_fraction=1, grace=10), []
        batches = iter(loader)
        for _ in range(24 // micro):
            batch = next(batches)
            bad.add(batch)
            clips += digest(batch)
        loader.close()
        found.append(clips)
        causes = {Path(path).name: text for path, text in bad.files.items()}
        assert "took longer than 1 s" in causes["v03.mp4"] and "crashed (SIGSEGV)" in causes["v07.mp4"]
        assert len(causes) == 2 and {3, 7} & {clip[3] for clip in clips} == set()
    assert found[0] == found[1], "what comes in their place does not depend on the micro-batch"


def test_a_hanging_view_of_an_evaluation_has_no_weight(clip_list):
    settings = config(clip_list, num_workers=2, clip_limit_s=1)
    batches = list(eval_batches(settings, "val", batch=4, reader=Sick(settings, "val")))
    weight, index = (torch.cat([batch[name] for batch in batches]) for name in ("weight", "index"))
    assert index.tolist() == list(range(12)) and index[weight == 0].tolist() == [3, 7]


def test_a_file_that_goes_or_changes_in_the_run_is_recorded_and_replaced(videos, tmp_path):
    for number in range(6):
        shutil.copy(f"{videos}/v{number:02}.mp4", tmp_path)
    (tmp_path / "list.csv").write_text("".join(f"v{number:02}.mp4 0\n" for number in range(6)))
    loader = TrainLoader(config(tmp_path / "list.csv", num_workers=2), seed=0, batch_total=6, batch_micro=6)
    batches = iter(loader)
    assert next(batches)["bad"] == []
    (tmp_path / "v01.mp4").unlink()
    (tmp_path / "v02.mp4").write_bytes(b"")
    shutil.copy(f"{videos}/v09.mp4", tmp_path / "v04.mp4")
    bad = [record for _ in range(8) for record in next(batches)["bad"]]
    loader.close()
    causes = {Path(record["path"]).name: record["error"] for record in bad}
    assert set(causes) == {"v01.mp4", "v02.mp4"}
    assert "no such file" in causes["v01.mp4"] and "0 bytes" in causes["v02.mp4"]


def test_processes_are_replaced_after_so_many_videos(clip_list, expected):
    loader = TrainLoader(config(clip_list, num_workers=1, recycle_clips=16), seed=3, batch_total=8, batch_micro=8)
    batches, found, pids = iter(loader), [], set()
    for _ in range(6):
        found.append(digest(next(batches)))
        pids.add(workers_of(loader)[0].pid)
    loader.close()
    assert found == expected and len(pids) >= 3


def test_elsewhere_than_on_linux_the_trainer_reads_itself_and_says_so(clip_list, expected, monkeypatch):
    monkeypatch.setattr(loader_module.sys, "platform", "darwin")
    loader = TrainLoader(config(clip_list, num_workers=2), seed=3, batch_total=8, batch_micro=8)
    batches = iter(loader)
    first, second = next(batches), next(batches)
    assert [digest(first), digest(second)] == expected[:2] and workers_of(loader) == []
    assert len(first["notes"]) == 1 and "need Linux" in first["notes"][0]["note"] and second["notes"] == []


def test_a_gpu_s_batches_are_copied_ahead_by_a_thread(clip_list, expected, monkeypatch):
    streams = Streams(monkeypatch)
    gpu = torch.device("cuda", 1)
    loader = TrainLoader(config(clip_list, num_workers=2), seed=3, batch_total=8, batch_micro=8, device=gpu)
    batches = iter(loader)
    assert [digest(next(batches)) for _ in range(6)] == expected
    deadline = time.monotonic() + 20
    while len(streams.devices) < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert streams.devices == [gpu] * len(streams.devices) and len(streams.devices) >= 7, "the next one is on its way"
    started = time.monotonic()
    loader.close()
    assert time.monotonic() - started < 3


def test_a_small_dev_shm_is_no_hindrance(clip_list):
    """Containers have 64 MB there; batches do not lie in it."""
    program = f"""
        from dsvid.data.loader import TrainLoader
        from dsvid.recipe import DataConfig
        config = DataConfig(train={str(clip_list)!r}, num_frames=4, input_size=128, num_workers=2)
        batches = iter(TrainLoader(config, seed=0, batch_total=16, batch_micro=16))
        print([int(next(batches)["clip"].float().mean() > 0) for _ in range(5)])
    """
    command = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" -c "$1"'
    shell = ["unshare", "--mount", "bash", "-c", command, sys.executable, textwrap.dedent(program)]
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(shell, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "[1, 1, 1, 1, 1]", done.stderr


def test_workers_outlive_the_schedulers_signals_and_end_with_close(clip_list):
    loader = TrainLoader(config(clip_list, num_workers=2), seed=0, batch_total=4, batch_micro=4)
    batches = iter(loader)
    next(batches)
    workers = workers_of(loader)
    for worker in workers:
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, name)
    for _ in range(6):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent(clip_list):
    program = textwrap.dedent(
        f"""
        import time
        from dsvid.data.loader import TrainLoader
        from dsvid.recipe import AugmentConfig, DataConfig
        config = DataConfig(train={str(clip_list)!r}, num_frames=4, input_size=32, num_workers=2)
        loader = TrainLoader(config, seed=0, batch_total=4, batch_micro=4)
        batches = iter(loader)
        next(batches)
        print(*[worker.pid for worker in loader.processes], flush=True)
        time.sleep(60)
        """
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 1.5  # torch's own watchdog needs up to 5 s
    while any(Path(f"/proc/{pid}").exists() and _running(pid) for pid in pids):
        assert time.monotonic() < deadline, "workers live on after their parent was killed"
        time.sleep(0.05)


def _running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_close_ends_a_worker_that_hangs_in_a_decoder(clip_list, monkeypatch):
    loader = TrainLoader(config(clip_list, num_workers=1), seed=0, batch_total=4, batch_micro=4)
    monkeypatch.setattr(loader.reader, "frames", lambda *_: time.sleep(1000))
    iter(loader)
    (worker,) = workers_of(loader)
    time.sleep(0.3)
    started = time.monotonic()
    loader.close()
    worker.join(timeout=5)
    assert not worker.is_alive() and time.monotonic() - started < 2


def test_a_gpu_s_decoder_is_used_by_processes_that_were_not_forked(clip_list, expected, monkeypatch):
    monkeypatch.setattr("dsvid.data.reader.choose_decoder", lambda *_, **__: ("pyav", "no GPU is here"))
    loader = TrainLoader(
        config(clip_list, num_workers=1, decoder="torchcodec_cuda"), seed=3, batch_total=8, batch_micro=8
    )
    assert [digest(batch) for batch, _ in zip(loader, range(3), strict=False)] == expected[:3]
    commands = [Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in loader.processes]
    assert len(commands) == 1 and b"spawn_main" in commands[0]
    loader.close()
