"""Predictions of a video are the scores that the objectives give the same clips, and the evaluation the same boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dsvid.data import ava_generated
from dsvid.data.ava import AvaSample
from dsvid.data.ava_annotations import KeyFrame
from dsvid.data.ava_boxes import corners
from dsvid.data.ava_clips import collate, eval_view, read_clip
from dsvid.data.builtin import draw_scene, render, write_clip
from dsvid.data.decode import open_clip_source
from dsvid.data.manifest import Entry
from dsvid.data.stream import open_stream
from dsvid.errors import CheckpointError, DataError
from dsvid.models.spec import ModelSpec, build_model
from dsvid.predict.classify import classify
from dsvid.predict.detect import clip_offsets, detect
from dsvid.predict.people import DETECTORS, detector_on_disk
from dsvid.predict.settings import Settings
from dsvid.predict.weights import open_predictor
from dsvid.weights.folder import write_folder

CPU = torch.device("cpu")
SIZE = {"dim": 24, "depth": 2, "heads": 2, "patch": 8, "mlp_hidden": 48, "head_init_scale": 50.0}
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "sampling_rate": 2}


def weights(folder: Path, task: str, classes: int, labels: list[str], **more: object) -> Path:
    spec = ModelSpec(task, "custom", 4, 32, num_classes=classes, **SIZE)
    state = build_model(spec, seed=3).state_dict()
    noise = torch.Generator().manual_seed(1)
    state = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=noise) for name, tensor in state.items()}
    write_folder(
        folder, state, {"model": spec.to_config(), "input": {**INPUT, **more}, "labels": labels, "trained": {}}
    )
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "v.mp4"
    write_clip(path, render(draw_scene(0, 1)))  # 20 frames of 80 x 80, 12 a second
    return path


@pytest.fixture(scope="module")
def ava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    ava_generated.make_set(folder, videos={"val": 1}, seconds=4, whole=True)
    (path,) = (folder / "videos").iterdir()
    return path


def test_classes_are_those_of_each_clip(video: Path, tmp_path: Path) -> None:
    predictor = open_predictor(weights(tmp_path / "w", "classify", 3, ["a", "b", "c"], short_side=40))
    with open_stream(video) as stream:
        timeline = classify(stream, predictor, Settings(top=2, batch=2), CPU)
    # 4 frames at distance 2: windows of 8, the last one pushed back so that it ends with the video
    assert [(clip.start, clip.end, clip.padded) for clip in timeline.clips] == [
        (0, 8, False),
        (8, 16, False),
        (12, 20, False),
    ]
    assert timeline.clips[1].start_s == pytest.approx(8 / 12) and timeline.clips[2].end_s == pytest.approx(20 / 12)
    from dsvid.data import augment

    rows = []
    with open_clip_source(Entry(str(video), -1, 0, -1, "video"), "pyav") as source:
        for clip in timeline.clips:
            frames = torch.from_numpy(source.read(range(clip.start, clip.start + 8, 2)))
            views = augment.center_crop(augment.resize_short_side(frames, 40), 32)[None].contiguous()
            with torch.no_grad():
                rows.append(predictor.objective.logits({"clip": views}).softmax(dim=1)[0].numpy())  # type: ignore[operator]
    for clip, row in zip(timeline.clips, rows, strict=True):
        order = np.argsort(-row)[:2]
        assert [each.number for each in clip.best] == order.tolist()
        assert [each.name for each in clip.best] == ["abc"[i] for i in order]
        assert [each.score for each in clip.best] == pytest.approx(row[order], abs=1e-5)
    mean = np.mean(rows, axis=0)
    assert [each.score for each in timeline.best] == pytest.approx(np.sort(mean)[::-1][:2], abs=1e-5)
    assert timeline.curves[0] == pytest.approx([row[timeline.best[0].number] for row in rows], abs=1e-5)
    assert np.ptp(timeline.curves[0]) > 1e-3  # clips differ, so the order above is seen


def test_a_video_shorter_than_a_clip_is_padded_aloud(video: Path, tmp_path: Path) -> None:
    predictor = open_predictor(weights(tmp_path / "w", "classify", 3, []))
    with open_stream(video) as stream:
        timeline = classify(stream, predictor, Settings(sampling_rate=10), CPU)
        dense = classify(stream, predictor, Settings(every_s=0.5), CPU)
    assert [(clip.start, clip.end, clip.padded) for clip in timeline.clips] == [(0, 20, True)]
    assert any("20 of 40 frames" in note for note in timeline.notes)
    assert any("no class names" in note for note in timeline.notes) and timeline.best[0].name.startswith("class ")
    assert [clip.start for clip in dense.clips] == [0, 6, 12]


def test_scores_of_people_are_those_of_the_evaluation(ava: Path, tmp_path: Path) -> None:
    names = [f"act {number}" for number in range(1, 7)]
    predictor = open_predictor(weights(tmp_path / "w", "detect", 6, names, short_side=40))
    shares = [[0.1, 0.2, 0.5, 0.9], [0.4, 0.1, 1.0, 0.6]]
    rows = "".join(
        f"{s},{','.join(map(str, box))},{score}\n" for s in (1, 3) for box, score in zip(shares, (0.9, 1), strict=True)
    )
    (tmp_path / "b.csv").write_text(rows + "2,0.1,0.1,0.5,0.5,0.5\n")
    with open_stream(ava) as stream:
        timeline = detect(stream, predictor, Settings(top=6, batch=4, person_score=0.8), CPU, tmp_path / "b.csv")
        size = stream.width, stream.height
    assert [key.second for key in timeline.key_frames] == [1.0, 3.0] and len(timeline.key_frames[0].people) == 2
    assert any("1 boxes" in note and "below 0.8" in note for note in timeline.notes)
    pixels = np.array(shares, np.float32) * np.array([*size, *size], np.float32)
    boxes = corners(np.concatenate([pixels[:, :2], pixels[:, 2:] - pixels[:, :2]], axis=1))
    for key in timeline.key_frames:
        frame = KeyFrame(ava.stem, round(key.second * 1e6), *size)
        sample = AvaSample(frame, boxes, np.zeros((2, 6), np.uint8), np.array([0.9, 1], np.float32))
        clip = read_clip(ava.parent, frame, frames=4, rate=2)
        with torch.no_grad():
            wanted = predictor.objective.scores(collate([eval_view(clip, sample, short=40)], 8))[0].numpy()  # type: ignore[operator]
        for person, row in zip(key.people, wanted, strict=True):
            assert [each.score for each in person.actions] == pytest.approx(np.sort(row)[::-1], abs=1e-5)
            assert [each.number for each in person.actions] == (np.argsort(-row, kind="stable") + 1).tolist()
            assert person.actions[0].name == f"act {person.actions[0].number}"
        assert [person.box for person in key.people] == [tuple(box) for box in shares]
    assert [[p.track for p in key.people] for key in timeline.key_frames] == [[1, 2], [1, 2]]


def test_without_boxes_the_whole_frame_is_one_and_it_is_said(
    ava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    predictor = open_predictor(weights(tmp_path / "w", "detect", 80, []))
    with open_stream(ava) as stream:
        timeline = detect(stream, predictor, Settings(every_s=1.5, threshold=0.99, top=3), CPU, None)
    assert [key.second for key in timeline.key_frames] == pytest.approx([0.0, 1.5, 3.0])
    assert all(person.box == (0, 0, 1, 1) for key in timeline.key_frames for person in key.people)
    assert all(len(person.actions) >= 1 for key in timeline.key_frames for person in key.people)
    text = " ".join(timeline.notes)
    assert (
        "the whole frame" in text
        and "nothing is downloaded" in text
        and "AVA's" in text
        and "12 frames a second" in text
    )
    named = {each.name for key in timeline.key_frames for person in key.people for each in person.actions}
    assert not any(name.startswith("class") for name in named)  # the 20 classes without a name are never shown


def test_a_detector_s_weights_on_disk_are_used(ava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import detection, get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert detector_on_disk() is None
    name = DETECTORS[-1]
    (known,) = get_model_weights(name)
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None)
    with torch.no_grad():  # every proposal a person, the first ones certain
        model.roi_heads.box_predictor.cls_score.bias[1] = 20.0
    file = tmp_path / "hub" / "checkpoints" / known.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(model.state_dict(), file)
    predictor = open_predictor(weights(tmp_path / "w", "detect", 6, []))
    with open_stream(ava) as stream:
        timeline = detect(stream, predictor, Settings(every_s=2.0, person_score=0.8), CPU, None)
    assert name in timeline.boxes_from and str(file) in timeline.boxes_from
    found = [person for key in timeline.key_frames for person in key.people]
    assert found and all(person.score >= 0.8 for person in found)
    assert all(0 <= p.box[0] < p.box[2] <= 1 and 0 <= p.box[1] < p.box[3] <= 1 for p in found)
    file.write_bytes(b"half")
    with open_stream(ava) as stream, pytest.raises(CheckpointError, match="cannot be loaded as torchvision's"):
        detect(stream, predictor, Settings(every_s=2.0), CPU, None)


def test_nobody_goes_on_over_a_cut(tmp_path: Path) -> None:
    pictures = np.full((36, 80, 96, 3), 40, np.uint8)
    pictures[18:] = 220
    write_clip(tmp_path / "v.mp4", pictures)
    (tmp_path / "b.csv").write_text("".join(f"{s},0.2,0.2,0.6,0.8\n" for s in (0, 1, 2)))
    predictor = open_predictor(weights(tmp_path / "w", "detect", 6, []))
    with open_stream(tmp_path / "v.mp4") as stream:
        timeline = detect(stream, predictor, Settings(), CPU, tmp_path / "b.csv")
    assert timeline.cuts_s == [1.5]
    assert [person.track for key in timeline.key_frames for person in key.people] == [1, 1, 2]


def test_box_files_that_do_not_suit_the_video(ava: Path, tmp_path: Path) -> None:
    predictor = open_predictor(weights(tmp_path / "w", "detect", 6, []))
    for text, least, words in (
        ("0,0,0,1,1\n99,0,0,1,1\n", 0.0, "b.csv:2: a second after"),
        ("0,0,0,1,1,0.5\n", 0.8, "no box has"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with open_stream(ava) as stream, pytest.raises(DataError, match=words):
            detect(stream, predictor, Settings(person_score=least), CPU, tmp_path / "b.csv")


def test_offsets_between_whole_numbers() -> None:
    assert clip_offsets(16, 4.0).tolist() == list(range(-31, 30, 4))
    apart = clip_offsets(16, 9.6)  # 60 frames a second, as if there were 25
    assert abs(apart[0] + apart[-1]) <= 2 and apart[-1] - apart[0] == 144 and set(np.diff(apart)) == {9, 10}


def test_weights_that_cannot_say_what_is_seen(tmp_path: Path) -> None:
    spec = ModelSpec("pretrain", "vit_micro", 4, 16)
    write_folder(tmp_path / "pre", build_model(spec, seed=0).state_dict(), {"model": spec.to_config()})
    with pytest.raises(CheckpointError, match=r"pre-training(.|\n)*fine-tune them"):
        open_predictor(tmp_path / "pre")
    with pytest.raises(CheckpointError, match="nothing there"):
        open_predictor(tmp_path / "none")
    folder = weights(tmp_path / "c", "classify", 3, ["a", "b", "c"])
    with pytest.raises(CheckpointError, match="another task"):
        open_predictor(folder, task="detect")
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="does not fit the head"):
        open_predictor(folder, labels=tmp_path / "two.txt")
    with pytest.raises(CheckpointError, match="without|no head|cannot classify"):
        open_predictor(weights(tmp_path / "none", "classify", 0, []))


def test_names_of_a_label_map_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "map.pbtxt").write_text('item {\n  name: "sit"\n  id: 2\n}\nitem {\n  name: "run"\n  id: 5\n}\n')
    predictor = open_predictor(weights(tmp_path / "d", "detect", 6, []), labels=tmp_path / "map.pbtxt")
    best = predictor.names.best(np.array([0.9, 0.1, 0.8, 0.7, 0.3, 0.6]), 4)
    assert [(each.number, each.name) for each in best] == [(5, "run"), (2, "sit")]
    (tmp_path / "names.json").write_text('["x", "y", "z"]')
    predictor = open_predictor(weights(tmp_path / "c", "classify", 3, ["a", "b", "c"]), labels=tmp_path / "names.json")
    assert predictor.names.names == ["x", "y", "z"]
    with pytest.raises(CheckpointError, match="at most 3"):
        open_predictor(weights(tmp_path / "e", "detect", 3, []), labels=tmp_path / "map.pbtxt")


def test_classes_that_were_chosen_keep_their_numbers(tmp_path: Path) -> None:
    """`detect.classes: [2, 5, 9]` trains three columns."""
    folder = weights(tmp_path / "d", "detect", 3, ["sit", "run", ""])
    config = json.loads((folder / "config.json").read_text()) | {"trained": {"classes": [2, 5, 9]}}
    (folder / "config.json").write_text(json.dumps(config))
    best = open_predictor(folder).names.best(np.array([0.1, 0.9, 0.8]), 3)
    assert [(each.number, each.name) for each in best] == [(5, "run"), (2, "sit")]
    (tmp_path / "map.pbtxt").write_text('item {\n  name: "fly"\n  id: 9\n}\n')
    best = open_predictor(folder, labels=tmp_path / "map.pbtxt").names.best(np.array([0.1, 0.9, 0.8]), 3)
    assert [(each.number, each.name) for each in best] == [(9, "fly")]


def test_published_weights_of_ava_are_opened_as_told(tmp_path: Path) -> None:
    """A file in VideoMAE's layout says neither its task nor its names."""
    spec = ModelSpec("detect", "vit_tiny", 16, 224, num_classes=80)
    with torch.no_grad():
        torch.save({"model": build_model(spec, seed=0).state_dict()}, tmp_path / "ava.pth")
    predictor = open_predictor(tmp_path / "ava.pth", task="detect")
    assert predictor.task == "detect" and predictor.names.names[10] == "sit" and predictor.short_side == 256
    with pytest.raises(CheckpointError, match="--task detect"):
        open_predictor(tmp_path / "ava.pth")
