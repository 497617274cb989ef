"""Split lists, halves and the table of frames: shares, seeds, what joins with the measures, and broken data."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsvid.data import traffic, traffic_lists
from dsvid.data.traffic_generated import make_set
from dsvid.errors import DataError
from dsvid.metrics import anomaly_groups


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {layout: tmp_path_factory.mktemp(layout) for layout in ("dota", "dada")}
    make_set(roots["dota"], {"train": 14, "val": 4})
    make_set(roots["dada"], {"train": 2, "val": 2}, layout="dada")
    return roots


def test_dota_s_lists_are_those_of_its_metadata(made: dict[str, Path]) -> None:
    lists = traffic_lists.make_split("dota", made["dota"])
    for path, names in lists.items():
        assert names == path.read_text().split()
    assert [len(names) for names in lists.values()] == [14, 4]


@pytest.mark.parametrize("layout", ["dota", "dada", "capdata"])
def test_lists_by_chance_hold_every_clip_once_and_follow_the_seed(made: dict[str, Path], layout: str) -> None:
    root = made["dada" if layout == "capdata" else layout]
    train, val = traffic_lists.make_split(layout, root, val_share=0.5).values()
    groups = traffic_lists._clips_by_category(layout, root)
    assert sorted(train + val) == sorted(name for names in groups.values() for name in names)
    for names in groups.values():
        assert abs(len(set(names) & set(val)) - len(names) / 2) <= 0.5
    assert list(traffic_lists.make_split(layout, root, val_share=0.5).values()) == [train, val]
    others = [list(traffic_lists.make_split(layout, root, val_share=0.5, seed=seed).values())[1] for seed in range(6)]
    assert len({tuple(names) for names in others}) > 1
    everything, nothing = traffic_lists.make_split(layout, root, val_share=0).values()
    assert len(everything) == len(train + val) and nothing == []


def test_a_new_list_is_read_and_an_old_one_is_not_replaced(made: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "dota"
    shutil.copytree(made["dota"], root)
    lists = traffic_lists.make_split("dota", root, val_share=0.5)
    for path, names in lists.items():
        old = path.read_bytes()
        with pytest.raises(DataError, match="there already"):
            traffic_lists.write_lists({root / "dataset" / "new.txt": names, path: names}, replace=False)
        assert path.read_bytes() == old and not (root / "dataset" / "new.txt").exists(), "none or all"
        traffic_lists.write_lists({path: names}, replace=True)
        traffic_lists.write_lists({path: names}, replace=False)  # the same again
        assert {clip.category for clip in traffic.read_dota(root, path.name)} == {"LA", "ST"}


def test_an_old_list_does_not_stay_beside_one_that_holds_its_clips(tmp_path: Path) -> None:
    lists = {tmp_path / "training.txt": ["1/001", "1/002"], tmp_path / "validation.txt": []}
    (tmp_path / "validation.txt").write_bytes(b"\xff1/002\n")
    with pytest.raises(DataError, match=r"validation\.txt is there already"):
        traffic_lists.write_lists(lists, replace=False)
    assert not (tmp_path / "training.txt").exists()
    traffic_lists.write_lists(lists, replace=True)
    assert (tmp_path / "training.txt").read_text() == "1/001\n1/002\n" and not (tmp_path / "validation.txt").exists()


@pytest.mark.parametrize(("layout", "split"), [("dota", "train_split.txt"), ("dada", "training.txt")])
def test_half_of_every_category(made: dict[str, Path], layout: str, split: str) -> None:
    names, read = traffic.open_labels(layout, made[layout], split)
    half = traffic_lists.halve_split(layout, made[layout], split)
    assert half == [name for name in names if name in half], "in the order of the list"
    kinds = [read(name).kind for name in names]
    for kind in set(kinds):
        assert sum(read(name).kind == kind for name in half) == max(1, kinds.count(kind) // 2)
    assert half == traffic_lists.halve_split(layout, made[layout], split)
    if layout == "dota":
        assert len({tuple(traffic_lists.halve_split(layout, made[layout], split, seed=seed)) for seed in range(5)}) > 1


def test_a_category_of_one_clip_stays(made: dict[str, Path], tmp_path: Path) -> None:
    names = traffic.open_labels("dota", made["dota"], "train_split.txt")[0]
    (tmp_path / "one.txt").write_text(f"{names[3]}\n")
    assert traffic_lists.halve_split("dota", made["dota"], str(tmp_path / "one.txt")) == [names[3]]


def test_the_table_joins_with_predictions(made: dict[str, Path], tmp_path: Path) -> None:
    clips = traffic.read_dota(made["dota"], "train_split.txt")
    frames = sum(len(clip.frames) for clip in clips)
    assert traffic_lists.write_table(tmp_path / "table.csv", clips) == (14, frames)
    with (tmp_path / "predictions.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "clip", "filename", "logits_safe", "logits_risk", "label", "ttc"])
        rows = [(clip, frame) for clip in clips for frame in range(0, len(clip.frames), 3)]
        for row, (clip, frame) in enumerate(rows):
            label = int(clip.labels[frame])
            writer.writerow([row, clip.name, clip.frames[frame], -label, label + row / 1e4, label, 0])
    predictions = anomaly_groups.read_predictions(tmp_path / "predictions.csv")
    joined = anomaly_groups.join_annotations(predictions, tmp_path / "table.csv")
    assert joined.unmatched == 0 and len(joined.label) == len(rows)
    assert (joined.flag("ego") == [clip.ego and clip.labels[frame] == 1 for clip, frame in rows]).all()
    assert (joined.flag("night") == [clip.night for clip, _ in rows]).all()
    numbers = [int(value) for value in joined.columns["cat"]]
    assert numbers == [clip.kind * int(clip.labels[frame]) for clip, frame in rows]
    groups = anomaly_groups.clip_groups(joined)
    assert groups["total"].clips == 14 and groups["total"].scores.auroc > 0.999
    ego = sum(clip.ego for clip in clips)
    assert groups["ego"].clips == ego and groups["LA/all"].clips + groups["ST/all"].clips == 14


def test_the_table_of_dada_has_its_frame_names(made: dict[str, Path], tmp_path: Path) -> None:
    clips = traffic.read_dada(made["dada"], "training.txt")
    traffic_lists.write_table(tmp_path / "table.csv", clips)
    with (tmp_path / "table.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[0]["filename"] == "0001.png" and rows[0]["clip_lvl_cat"] == str(clips[0].kind)
    assert np.array([row["cat"] != "0" for row in rows]).sum() == sum(clip.labels.sum() for clip in clips)


def test_what_is_broken_is_named(made: dict[str, Path], tmp_path: Path) -> None:
    for layout in ("dota", "dada", "capdata"):
        with pytest.raises(DataError, match="no clips"):
            traffic_lists.make_split(layout, tmp_path, val_share=0.1)
    with pytest.raises(DataError, match="metadata_train"):
        traffic_lists.make_split("dota", tmp_path)
    with pytest.raises(DataError, match="share of validation"):
        traffic_lists.make_split("dota", made["dota"], val_share=1.0)
    (tmp_path / "wrong.txt").write_text("generated-train_000000\nnobody_knows\n")
    with pytest.raises(DataError, match="'nobody_knows' of the split list is unknown"):
        traffic_lists.halve_split("dota", made["dota"], str(tmp_path / "wrong.txt"))
