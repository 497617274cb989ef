"""Measures of anomaly scores against scikit-learn and against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsvid.errors import DataError
from dsvid.metrics import anomaly
from dsvid.metrics.anomaly_groups import clip_groups, ego_clips, join_annotations, read_predictions


def frames(seed: int, count: int = 500, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(int)
    scores = np.clip(rng.normal(0.4 + 0.15 * labels, 0.2), 0, 1)
    return (np.round(scores * levels) / levels if levels else scores), labels


@pytest.mark.parametrize("levels", [0, 3, 20])
def test_exact_measures_are_scikit_learns(levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        scores, labels = frames(seed, levels=levels)
        ours = anomaly.anomaly_scores(scores, labels)
        hard = scores >= 0.5
        assert ours.auroc == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
        assert ours.ap == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
        assert ours.accuracy == pytest.approx(metrics.accuracy_score(labels, hard), abs=1e-12)
        assert ours.precision == pytest.approx(metrics.precision_score(labels, hard), abs=1e-12)
        assert ours.recall == pytest.approx(metrics.recall_score(labels, hard), abs=1e-12)
        assert ours.f1 == pytest.approx(metrics.f1_score(labels, hard), abs=1e-12)
        curve = [metrics.matthews_corrcoef(labels, scores >= t) for t in anomaly.THRESHOLDS]
        assert np.allclose(anomaly.count_at(scores, labels).mcc, curve, atol=1e-12)
        assert ours.mcc_auc == pytest.approx(metrics.auc(anomaly.THRESHOLDS, curve), abs=1e-12)
        assert (ours.mcc_max, ours.mcc_05) == pytest.approx((max(curve), curve[50]), abs=1e-12)


def test_counts_at_thresholds_are_those_of_counting() -> None:
    scores, labels = frames(1, levels=10)
    counts = anomaly.count_at(scores, labels, [0.0, 0.3, 0.5, 1.0])
    for place, threshold in enumerate([0.0, 0.3, 0.5, 1.0]):
        called = scores >= threshold
        assert counts.tp[place] == (called & (labels == 1)).sum()
        assert counts.fp[place] == (called & (labels == 0)).sum()
        assert counts.fn[place] == (~called & (labels == 1)).sum()
        assert counts.tn[place] == (~called & (labels == 0)).sum()


def test_a_million_frames_do_not_overflow() -> None:
    """Products of four counts pass int64 from about 55,000 frames on."""
    labels = np.arange(1_000_000) % 2
    assert anomaly.anomaly_scores(labels * 0.8 + 0.1, labels).mcc_05 == 1.0


def test_one_class_alone() -> None:
    for label in (0, 1):
        found = anomaly.anomaly_scores([0.2, 0.7], [label, label])
        assert np.isnan(found.auroc) and found.ap == float(label) and found.mcc_auc == found.mcc_05 == 0
    nothing = anomaly.anomaly_scores(np.empty(0), np.empty(0))
    assert np.isnan(nothing.auroc) and nothing.ap == nothing.accuracy == 0 and nothing.frames == 0


def test_a_tie_of_logits_is_safe_for_argmax_and_an_anomaly_at_one_half() -> None:
    scores, labels = np.array([0.5, 0.5], dtype=np.float32), [0, 1]
    assert anomaly.count_higher_logit(scores, labels).matrix() == [[1, 0], [1, 0]]
    assert anomaly.count_at(scores, labels, [0.5]).matrix() == [[0, 1], [0, 1]]


def test_bins_hide_what_happens_below_the_first() -> None:
    scores, labels = np.array([0.001, 0.004, 0.002, 0.007], dtype=np.float32), [0, 1, 0, 1]
    assert anomaly.roc_area(scores, labels) == 1.0
    assert anomaly.binned_roc_area(anomaly.count_at(scores, labels)) == 0.5


# ---- groups --------------------------------------------------------------------------------------------------------


def tables(folder: Path, known: int = 12) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    predictions, annotations = folder / "predictions.csv", folder / "anno.csv"
    lines, notes = (
        [",clip,filename,logits_safe,logits_risk,label,ttc"],
        [",clip,filename,cat,ego,night,clip_lvl_cat,clip_lvl_ego"],
    )
    for number in range(12):
        clip, label = f"c{number // 4}", number % 2
        lines.append(f"{number},{clip},{number},{rng.normal():.4f},{rng.normal() + label:.4f},{label},0.0")
        if number < known:
            ego = int(clip == "c0" and label)
            notes.append(f"{number},{clip},{number:06}.jpg,0,{ego},0,{'ST' if clip == 'c0' else 'OO'},{clip != 'c1'}")
    predictions.write_text("\n".join(lines))
    annotations.write_text("\n".join(notes))
    return predictions, annotations


def test_frames_are_joined_by_clip_and_name_and_grouped(tmp_path: Path) -> None:
    predictions, annotations = tables(tmp_path)
    joined = join_annotations(read_predictions(predictions), annotations)
    assert joined.unmatched == 0 and len(joined.label) == 12
    groups = clip_groups(joined)
    assert {name: (group.clips, group.scores.frames) for name, group in groups.items()} == {
        "total": (3, 12),
        "ego": (2, 8),
        "nonego": (1, 4),
        "ST/all": (1, 4),
        "ST/ego": (1, 4),
        "OO/all": (2, 8),
        "OO/ego": (1, 4),
        "OO/nonego": (1, 4),
    }
    assert ego_clips(joined).tolist() == [True] * 4 + [False] * 8


def test_too_many_frames_without_annotation_are_an_error(tmp_path: Path) -> None:
    predictions, annotations = tables(tmp_path, known=10)
    frames = read_predictions(predictions)
    joined = join_annotations(frames, annotations)
    assert len(joined.label) == 10 and joined.unmatched == pytest.approx(1 / 6)
    with pytest.raises(DataError, match=r"16\.7%"):
        join_annotations(frames, annotations, max_unmatched=0.15)
    annotations.write_text(annotations.read_text().replace(".jpg", ".png"))
    with pytest.raises(DataError, match=r"100\.0%"):
        join_annotations(frames, annotations, max_unmatched=1.0)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    predictions, _ = tables(tmp_path)
    predictions.write_text(predictions.read_text().replace("logits_risk", "risk"))
    with pytest.raises(DataError, match="also logits_risk"):
        read_predictions(predictions)
