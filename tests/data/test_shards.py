"""Packed shards as a data set: the same frames and labels as the loose list, and what is damaged says so."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsvid.data import shards
from dsvid.data.decode import PyavSource, open_clip_source
from dsvid.data.feature_files import output_names
from dsvid.data.loader import TrainLoader
from dsvid.data.manifest import Entry, open_split, read_list
from dsvid.data.reader import ClipReader
from dsvid.data.shard_packing import Packing
from dsvid.data.shard_samples import PackOptions
from dsvid.data.windows import read_videos
from dsvid.errors import DataError
from dsvid.recipe import DataConfig
from tests.data.numbered_videos import read_number, write_video

WHOLE = 1 << 12  # a short side that no video has: nothing is resized
JITTER = [40 * number + 12 * (number % 3) + (200 if number >= 20 else 0) for number in range(40)]  # ms


@pytest.fixture(scope="module")
def listed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of three sound videos, a broken one, a part of a video and a video of irregular times."""
    folder = tmp_path_factory.mktemp("listed")
    write_video(folder / "jitter.mp4", 40, 64, 80, times=JITTER, g=12)
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    lines = [
        "path start total label",
        *(f"{videos}/v{number:02}.mp4 0 -1 {number % 2}" for number in (0, 1, 2)),
        "broken.mp4 0 -1 1",
        f"{videos}/v03.mp4 10 15 1",
        "jitter.mp4 0 -1 0",
    ]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def pack(listed: Path, out: Path, **options: object) -> Path:
    Packing(read_list(listed), out, PackOptions(**{"short_side": WHOLE, **options})).run()  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def packed(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(listed, tmp_path_factory.mktemp("packed") / "all", quality=95)


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "own"
    folder.mkdir()
    for path in packed.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def readers(listed: Path, packed: Path, **settings: object) -> tuple[ClipReader, ClipReader]:
    shared = {"num_frames": 4, "sampling_rate": 3, "input_size": 32, **settings}
    return ClipReader(DataConfig(train=str(listed), **shared), "train"), ClipReader(
        DataConfig(train=str(packed), **shared), "train"
    )


def through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("rule", ["stride", "dense", "segment"])
def test_a_recipe_sees_the_same_frames_and_labels(listed: Path, packed: Path, rule: str) -> None:
    loose, shard = readers(listed, packed, sampling=rule)
    assert loose.size == shard.size == 6
    assert list(loose.manifest.labels) == list(shard.manifest.labels) == [0, 1, 0, 1, 1, 0]
    assert [loose.manifest.line_number(i) for i in range(6)] == [shard.manifest.line_number(i) for i in range(6)]
    for index in (0, 1, 2, 4, 5):
        for seed in range(3):
            one, other = (reader.frames(index, np.random.default_rng(seed)) for reader in (loose, shard))
            assert one.short == other.short
            numbers = [read_number(picture) for picture in one.frames.numpy()]
            assert numbers == [read_number(picture) for picture in other.frames.numpy()]
            difference = np.abs(one.frames.numpy().astype(int) - other.frames.numpy())
            assert difference.mean() < 1, "JPEG's chroma has half the resolution, or it would be less"
            for picture, again in zip(one.frames.numpy(), other.frames.numpy(), strict=True):
                assert np.array_equal(through_jpeg(picture, 95), again), "nothing but JPEG lies between the two"


def test_views_by_the_rate_are_the_same(listed: Path, packed: Path) -> None:
    loose, shard = readers(listed, packed, sampling="dense", view_fps=8.0)
    for index in (0, 4, 5):
        for segment in range(3):
            one, other = (reader.frames(index, (3, segment)) for reader in (loose, shard))
            assert [read_number(p) for p in one.frames.numpy()] == [read_number(p) for p in other.frames.numpy()]


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_frames_come_in_the_order_asked_for(listed: Path, tmp_path: Path, codec: str) -> None:
    manifest = open_split(str(pack(listed, tmp_path / "out", codec=codec, short_side=48)), "val")
    with open_clip_source(manifest[1], "pyav") as source:
        assert (source.frames, source.fps, source.note) == (30, 25.0, None)
        shown = source.read([29, 0, 7, 7, 3])
        assert shown.shape == (5, 48, 48, 3)
        assert [read_number(picture) - 64 for picture in shown] == [29, 0, 7, 7, 3]
        for wrong in ([30], [-1], []):
            with pytest.raises(DataError, match="of a video of 30 frames"):
                source.read(wrong)


@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_a_frame_that_was_thinned_out_is_the_nearest_kept_one(listed: Path, tmp_path: Path, codec: str) -> None:
    manifest = open_split(str(pack(listed, tmp_path / "out", fps=6.0, codec=codec)), "train")
    index = PyavSource(str(listed.parent / "jitter.mp4"))
    times = index.seconds()
    index.close()
    with open_clip_source(manifest[5], "auto") as source:
        assert source.frames == 40
        shown = [read_number(picture) for picture in source.read(np.arange(40))]
    kept = sorted(set(shown))
    wanted = np.arange(int(times[-1] * 6 + 0.5) + 1) / 6
    assert kept == sorted({int(np.abs(times - moment).argmin()) for moment in wanted}) and 8 < len(kept) < 14
    for number, other in enumerate(shown):
        nearest = np.abs(times[kept] - times[number]).min()
        assert abs(times[other] - times[number]) == pytest.approx(nearest, abs=1e-6)


def test_a_sample_that_could_not_be_packed_tells_why(packed: Path) -> None:
    manifest = open_split(str(packed), "train")
    assert manifest.path(3) == "broken.mp4" and len(manifest) == 6
    said = pytest.raises(DataError, match=r"broken\.mp4: could not be read when it was packed")
    with said as caught, open_clip_source(manifest[3], "pyav"):
        pass
    assert "cannot be decoded" in str(caught.value.found)


def test_the_list_s_hash_is_the_index_s(packed: Path) -> None:
    manifest = open_split(str(packed), "train")
    assert manifest.sha256 == hashlib.sha256((packed / "index.json").read_bytes()).hexdigest()
    with pytest.raises(DataError, match="line 3: the label does not fit") as caught:
        manifest.check_labels(1)
    assert str(packed) in caught.value.what


def test_features_of_packed_videos_have_the_names_of_the_list(packed: Path) -> None:
    manifest = read_videos(str(packed))
    names = output_names(manifest, ".npz")
    assert names[3] == "broken.npz" and names[5] == "jitter.npz" and len(set(names)) == 6
    with open_clip_source(manifest[5], "pyav") as source:
        assert source.frames == 40


# ---- processes -----------------------------------------------------------------------------------------------------


def numbers_of(entry: Entry) -> list[int]:
    with open_clip_source(entry, "pyav") as source:
        return [read_number(picture) for picture in source.read([0, 9])]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_too(packed: Path, method: str) -> None:
    manifest = open_split(str(packed), "train")
    assert numbers_of(manifest[2]) == [128, 137]  # the maps are open before the fork
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(numbers_of, manifest[1]).result() == [64, 73]
    assert numbers_of(manifest[1]) == [64, 73]


def test_loader_processes_give_the_same_batches(packed: Path) -> None:
    settings = {"train": str(packed), "num_frames": 4, "sampling_rate": 2, "input_size": 32, "max_bad_fraction": 1.0}
    plain, worker = (
        iter(TrainLoader(DataConfig(**settings, num_workers=workers), seed=1, batch_total=4, batch_micro=4))
        for workers in (0, 1)
    )
    for _ in range(3):
        one, other = next(plain), next(worker)
        assert torch.equal(one["clip"], other["clip"]) and torch.equal(one["label"], other["label"])
        assert one["bad"] == other["bad"]
    worker.close()  # type: ignore[attr-defined]


def test_a_copy_of_the_reader_copies_no_data(packed: Path) -> None:
    folder = shards.open_shards(packed)
    numbers_of(folder.manifest()[0])
    blob = pickle.dumps(folder)
    assert len(blob) < 1000
    assert pickle.loads(blob) is folder, "in the same process it is the same"
    assert len(pickle.dumps(ClipReader(DataConfig(train=str(packed)), "train"))) < 5000


def test_few_shards_are_open_at_a_time(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{videos}/v{number:02}.mp4 0\n" for number in range(6)] * 11
    (tmp_path / "list.csv").write_text("".join(lines))
    folder = pack(tmp_path / "list.csv", tmp_path / "out", shard_mb=1, quality=100)
    manifest = open_split(str(folder), "train")
    assert len(shards.open_shards(folder).about["shards"]) >= 4
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    for index in range(0, 66, 5):
        numbers_of(manifest[index])
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}
    assert len([name for name in mapped if name.endswith(".tar")]) == 2


# ---- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


def test_a_damaged_member_is_named(own: Path) -> None:
    content = (own / "shard-000000.tar").read_bytes()
    flip(own / "shard-000000.tar", content.index(b"000000001.00004.jpg") + 512 + 100)
    manifest = open_split(str(own), "train")
    with open_clip_source(manifest[1], "pyav") as source:
        assert len(source.read([3, 5])) == 2
        with pytest.raises(DataError, match=r"shard-000000\.tar: 000000001\.00004\.jpg .*v01\.mp4") as caught:
            source.read([3, 4])
    assert "checksum" in str(caught.value.found)


def edit(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(about | changes))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("shard-000000.tar", None, "a shard is missing"),
        ("shard-000000.tar", "cut", "not the shard that was packed"),
        ("samples.npy", "cut", "damaged, or of another packing"),
        ("samples.npy", None, "cannot be read"),
        ("paths.txt", "flip", "damaged, or of another packing"),
        ("bad.jsonl", None, "cannot be read"),
        ("frames.npy", "cut", "damaged"),
        ("frames.npy", None, "damaged"),
        ("index.json", "cut", "cannot be read"),
    ],
)
def test_what_is_missing_or_short_is_said_at_the_start(own: Path, name: str, damage: str | None, said: str) -> None:
    path = own / name
    if damage is None:
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        flip(path, 3)
    with pytest.raises(DataError, match=f"{re.escape(name)}: .*{said}" if name in said else said) as caught:
        shards.open_shards(own)
    assert name in caught.value.what and (caught.value.fix or caught.value.expected)


def test_another_version_or_format_is_refused(own: Path, tmp_path: Path) -> None:
    edit(own, version=2)
    with pytest.raises(DataError, match="another version"):
        open_split(str(own), "train")
    edit(own, version=1, files={})
    with pytest.raises(DataError, match="entries are missing"):
        open_split(str(own), "train")
    edit(own, format="something")
    with pytest.raises(DataError, match="not the index of packed shards"):
        open_split(str(own), "train")


def test_damaged_rows_of_the_index_are_found_when_they_are_used(own: Path) -> None:
    folder = shards.open_shards(own)
    row = int(folder.samples["first"][1]) + 4
    flip(own / "frames.npy", (own / "frames.npy").stat().st_size - (len(folder.frames) - row) * shards.FRAME.itemsize)
    (own / "index.json").touch()
    manifest = open_split(str(own), "train")
    assert numbers_of(manifest[0]) == [0, 9]
    with pytest.raises(DataError, match=r"frames\.npy: damaged"):
        numbers_of(manifest[1])


def test_an_index_of_another_program_does_not_hide_the_list(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "index.json").write_text("[1, 2")
    (tmp_path / "train.csv").write_text(f"{videos}/v00.mp4 0\n")
    assert len(open_split(str(tmp_path), "train")) == 1


def test_an_unfinished_packing_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "packing.json").write_text("{}")
    with pytest.raises(DataError, match="not finished"):
        open_split(str(tmp_path), "train")
