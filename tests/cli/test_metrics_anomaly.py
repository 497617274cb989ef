"""`dsvid metrics anomaly`: measures, groups and curves from a predictions.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsvid.cli import main
from dsvid.metrics.anomaly import anomaly_scores

HEADER = ("", "clip", "filename", "logits_safe", "logits_risk", "label", "ttc")
TABLE = ("clip", "filename", "cat", "ego", "night", "clip_lvl_cat", "clip_lvl_ego")


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


@pytest.fixture()
def frames(tmp_path: Path) -> list[tuple[str, int, float, int]]:
    """Three clips of 20 frames: two with an anomaly in frames 8 to 13; clip, frame, margin of the logits, label."""
    rng = np.random.default_rng(0)
    found = []
    for clip in ("10/003", "10_003", "LA"):
        for frame in range(20):
            label = int(clip != "LA" and 8 <= frame < 14)
            found.append((clip, frame, float(np.round(rng.normal(2 * label - 1), 4)), label))
    rows = [(n, clip, f"{f:06}.jpg", 0.0, margin, label, 0) for n, (clip, f, margin, label) in enumerate(found)]
    write(tmp_path / "predictions.csv", HEADER, rows)
    return found


def test_measures_and_groups(
    frames: list[tuple[str, int, float, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(c, f"{f:06}.jpg", 3 * label, label, 0, "LA", int(c == "10/003")) for c, f, _, label in frames]
    table = write(tmp_path / "table.csv", TABLE, rows)
    words = ["metrics", "anomaly", str(tmp_path / "predictions.csv"), "--table", str(table)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    margin, labels = np.array([row[2] for row in frames]), np.array([row[3] for row in frames])
    expected = anomaly_scores(1 / (1 + np.exp(-margin)), labels)
    assert result["auroc"] == pytest.approx(expected.auroc) and result["auc_mcc"] == pytest.approx(expected.mcc_auc)
    assert (result["frames"], result["anomalies"], result["clips"]) == (60, 12, 3)
    ego = np.array([row[0] == "10/003" for row in frames])
    part = anomaly_scores(1 / (1 + np.exp(-margin[ego])), labels[ego])
    assert result["groups"]["ego"]["auroc"] == pytest.approx(part.auroc) == result["groups"]["LA/ego"]["auroc"]
    assert f"{100 * expected.auroc:.2f}" in capsys.readouterr().out
    for name in ("stats.txt", "groups.csv", "roc.png", "pr.png", "mcc.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_a_table_without_columns_of_clips_tells_ego_from_frames(
    frames: list[tuple[str, int, float, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """simple-tad's annotation of DADA-2000."""
    rows = [(c, f"{f:06}.jpg", label, int(label and c == "10/003"), 0) for c, f, _, label in frames]
    table = write(tmp_path / "table.csv", TABLE[:5], rows)
    words = ["metrics", "anomaly", str(tmp_path / "predictions.csv"), "--table", str(table)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    groups = json.loads((tmp_path / "out" / "result.json").read_text())["groups"]
    assert {name: group["clips"] for name, group in groups.items()} == {"total": 3, "ego": 1, "nonego": 2}


def test_a_curve_for_each_clip(frames: list[tuple[str, int, float, int]], tmp_path: Path) -> None:
    """Clips whose names differ in a character that no file name has are two files."""
    words = ["metrics", "anomaly", str(tmp_path / "predictions.csv"), "--curves", str(tmp_path / "curves")]
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["10_003.png", "10_003_1.png", "LA.png"]
    band = {}
    for path in (tmp_path / "curves").iterdir():
        picture = np.asarray(Image.open(path)).astype(int)
        band[path.stem] = float((picture == (255, 228, 225)).all(axis=2)[24:].any(axis=0).mean())
    assert band["LA"] == 0, "a clip without an anomaly has no band"
    assert band["10_003"] == pytest.approx(6 / 19 * 588 / 640, abs=0.01), "six frames of nineteen steps"
    assert main([*words[:-1], str(tmp_path / "one"), "--clip", "LA"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["LA.png"]


def test_a_frame_that_comes_again_counts_once(
    frames: list[tuple[str, int, float, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """simple-tad's files repeat the padding of the last batch."""
    path = tmp_path / "predictions.csv"
    assert main(["metrics", "anomaly", str(path)]) == 0
    once = capsys.readouterr().out
    path.write_text(path.read_text() + "60,LA,000019.jpg,0,9.5,0,0\n61,LA,000018.jpg,0,9.5,0,0\n")
    assert main(["metrics", "anomaly", str(path)]) == 0
    assert capsys.readouterr().out == "2 rows are of frames that had come before, and are left out\n" + once
    path.write_text(path.read_text() + "62,LA,000018.jpg,0,9.5,1,0\n")
    assert main(["metrics", "anomaly", str(path)]) == 2
    assert "predictions.csv:64: label of LA 000018.jpg" in capsys.readouterr().err


def test_one_class_alone_has_a_dash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "p.csv", HEADER, [(0, "a", "000000.jpg", 0, 1, 0, 0), (1, "a", "000001.jpg", 1, 0, 0, 0)])
    assert main(["metrics", "anomaly", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["auroc"] is result["auroc_binned"] is None
    assert "-" in capsys.readouterr().out.splitlines()[2].split()


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([], [], "no frame"),
        ([(0, "a", "1.jpg", 0, "x", 0, 0)], [], "column 'logits_risk'"),
        ([(0, "a", "1.jpg", 0, "nan", 0, 0)], [], "p.csv:2: logits"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0), (0, "a", "2.jpg", 0, 1, 2, 0)], [], "p.csv:3: label"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--clip", "b"], "--clip has no effect"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--curves", "{}/c", "--clip", "b"], "no frame of clip b"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--table", "{}/none.csv"], "none.csv"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--threshold", "nan"], "--threshold"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--max-unmatched", "2"], "--max-unmatched"),
        ([(0, "a" * 200_000, "1.jpg", 0, 1, 0, 0)], [], "cannot be read"),
        ([(0, "a", "1.jpg", 0, 1, 0, 0)], ["--out", "{}/p.csv"], "cannot be written"),
    ],
)
def test_a_mistake_is_named(
    rows: list[tuple[object, ...]], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "p.csv", HEADER, rows)
    assert main(["metrics", "anomaly", str(tmp_path / "p.csv"), *(word.format(tmp_path) for word in more)]) == 2
    assert message in capsys.readouterr().err
