"""Packed clips that are decoded behind the hand-over: the same code on the CPU gives what the loader gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dsvid.data import device_jpegs
from dsvid.data.device_jpegs import JpegReader, check_device, decode_clips
from dsvid.data.loader import TrainLoader, _TrainClips
from dsvid.data.manifest import read_list
from dsvid.data.picture import PictureError, decode_jpegs
from dsvid.data.reader import ClipReader
from dsvid.data.shard_packing import Packing
from dsvid.data.shard_samples import PackOptions
from dsvid.errors import DataError, DsvidError
from dsvid.recipe import DataConfig
from tests.data.numbered_videos import write_video
from tests.data.standin_streams import Streams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
BATCHES = 4


@pytest.fixture(scope="module")
def packed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sound videos, a broken one and one of 9 frames and of another size."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    write_video(folder / "short.mp4", 9, 64, 96, offset=800)
    lines = [f"{videos}/v{number:02}.mp4 {number}\n" for number in range(6)]
    (folder / "list.csv").write_text("".join(lines) + "broken.mp4 6\nshort.mp4 7\n")
    Packing(read_list(folder / "list.csv"), folder / "out", PackOptions(short_side=64)).run()
    return folder / "out"


def config(train: Path, **settings: Any) -> DataConfig:
    usual = {"num_frames": 4, "sampling_rate": 3, "input_size": 32, "flip": 0.5, "num_workers": 0, "prefetch": 1}
    return DataConfig(train=str(train), **{**usual, **settings})


def batches(settings: DataConfig, **how: Any) -> Iterator[dict[str, Any]]:
    loader = TrainLoader(settings, seed=5, batch_total=8, batch_micro=4, **how)
    for batch, _ in zip(loader, range(BATCHES), strict=False):
        yield batch
    loader.close()


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """A GPU whose decoder is the CPU's, and whose copies happen when somebody waits for them."""
    monkeypatch.setattr(device_jpegs, "check_device", lambda device: CPU)
    return Streams(monkeypatch)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_workers": 2, "num_sample": 2},
        {"crop": "random_resized", "short_side": 48},
        {"crop": "random", "sampling": "segment", "num_frames": 12},  # the short video shows frames twice
        {"crop": "center", "sampling": "dense", "input_size": 80},  # larger than the pictures
    ],
)
def test_batches_are_those_of_the_loader_bit_for_bit(packed: Path, standin: Streams, settings: dict[str, Any]) -> None:
    found = list(batches(config(packed, jpeg_decoder="gpu", **settings), device=GPU))
    expected = list(batches(config(packed, **settings)))
    assert len(found) == BATCHES and all(map(equal, found, expected))
    assert any(batch["bad"] for batch in found) and standin.devices, "another clip stands for the broken one"


def test_pictures_are_handed_over_and_decoded_once(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(pictures: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        decoded.append(len(pictures))
        return decode_jpegs(pictures, device)

    decoded: list[int] = []
    monkeypatch.setattr(device_jpegs, "decode_jpegs", counted)
    handed = {}
    for samples in (1, 2):
        reader = ClipReader(config(packed, jpeg_decoder="gpu", num_sample=samples), "train")
        batch = _TrainClips(JpegReader(reader), 5, 2 * samples).make(0, {})
        assert reader.decoding.startswith("nvJPEG") and ClipReader(config(packed), "train").decoding[:6] != "nvJPEG"
        assert isinstance(batch, dict) and batch["spans"].shape == (2 * samples, 4, 2)
        handed[samples] = len(batch["jpegs"])
        clip = decode_clips(_TrainClips(reader, 5, 2 * samples), batch, CPU)
        assert clip.shape == (2 * samples, 4, 32, 32, 3)
    assert handed[1] == handed[2] > 0, "two clips of a video share its pictures"
    assert decoded == [4, 4, 4, 4]


def test_what_is_damaged_is_found_before_the_hand_over(packed: Path, standin: Streams, tmp_path: Path) -> None:
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    for row in device_jpegs.open_shards(packed).rows(2):
        data[int(row["offset"]) + int(row["size"]) // 2] ^= 1
    shard.write_bytes(data)
    found = list(batches(config(tmp_path, jpeg_decoder="gpu"), device=GPU))
    assert all(map(equal, found, batches(config(tmp_path))))
    errors = [record["error"] for batch in found for record in batch["bad"]]
    assert any("checksum" in error for error in errors) and any("when it was packed" in error for error in errors)


def test_a_picture_of_another_size_than_the_index_says_is_refused(packed: Path) -> None:
    source = device_jpegs.open_packed(ClipReader(config(packed), "train").manifest[0])
    assert len(source.jpegs([3, 3, 4])) == 3 and len({id(each) for each in source.jpegs([3, 3, 4])}) == 2
    source._size = (64, 65, 3)
    with pytest.raises(DataError, match="00003.jpg"):
        source.jpegs([3])


def test_what_the_device_cannot_decode_is_read_on_the_cpu(
    packed: Path, standin: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pictures: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        if len(refused) < 2:
            refused.append(len(pictures))
            raise PictureError("no such Huffman table")
        return decode_jpegs(pictures, device)

    refused: list[int] = []
    monkeypatch.setattr(device_jpegs, "decode_jpegs", refuse)
    found = list(batches(config(packed, jpeg_decoder="gpu"), device=GPU))
    notes = [batch.pop("notes") for batch in found]
    assert ["Huffman" in str(each) for each in notes] == [True, True, False, False]
    for batch, expected in zip(found, batches(config(packed)), strict=True):
        assert expected.pop("notes") == [] and equal(batch, expected)


@pytest.mark.parametrize("device", [None, CPU])
def test_without_cuda_it_is_refused(packed: Path, device: torch.device | None) -> None:
    with pytest.raises(DsvidError, match="needs CUDA"):
        TrainLoader(config(packed, jpeg_decoder="gpu"), seed=0, batch_total=4, batch_micro=4, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_torchvision_without_its_decoder_is_named() -> None:
    with pytest.raises(DataError, match="decodes no JPEG on the GPU") as caught:
        check_device(torch.device("cuda", 0))
    assert "jpeg_decoder=cpu" in str(caught.value)


def test_only_packed_jpegs_are_taken(videos: Path, standin: Streams, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{videos}/v00.mp4 0\n")
    Packing(read_list(tmp_path / "list.csv"), tmp_path / "out", PackOptions(codec="h264")).run()
    for train, found in ((tmp_path / "list.csv", "no packed shards"), (tmp_path / "out", "codec h264")):
        with pytest.raises(DataError, match="packed JPEGs") as caught:
            TrainLoader(config(train, jpeg_decoder="gpu"), seed=0, batch_total=4, batch_micro=4, device=GPU)
        assert found in str(caught.value.found)
