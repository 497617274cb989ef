"""Merging of views and the top-k numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dsvid.errors import DataError
from dsvid.evaluate.classify import evaluate
from dsvid.metrics.classification import class_accuracy, confusion_matrix, topk_accuracy


class Scripted(nn.Module):
    """Stands where the objective stands: the clip's first byte is the class it votes for."""

    class _Model:
        num_classes = 3

    model = _Model()

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.one_hot(batch["clip"][:, 0].long(), 3).float() * 4


def batch(votes: list[int], index: list[int], label: list[int], weight: list[float]) -> dict[str, object]:
    return {
        "clip": torch.tensor(votes, dtype=torch.uint8)[:, None],
        "index": torch.tensor(index),
        "label": torch.tensor(label),
        "weight": torch.tensor(weight),
        "bad": [],
    }


def run(batches: list[dict[str, object]], labels: list[int], views: int = 3, **files: object):
    device = torch.device("cpu")
    return evaluate(Scripted(), batches, labels=np.array(labels), views=views, device=device, **files)  # type: ignore


def test_views_are_averaged_and_padding_is_ignored() -> None:
    # Video 0: two views for class 1, one for class 2. Video 1: one view for class 0. The last entry is padding.
    result = run(
        [batch([1, 2], [0, 0], [1, 1], [1, 1]), batch([1, 0, 2], [0, 1, 0], [1, 0, 0], [1, 1, 0])], labels=[1, 0]
    )
    assert result.views.tolist() == [3, 1]
    assert result.labels.tolist() == [1, 0]
    assert result.probabilities.argmax(axis=1).tolist() == [1, 0]
    assert result.probabilities.sum(axis=1) == pytest.approx([1, 1])
    high, low = np.exp(4) / (np.exp(4) + 2), 1 / (np.exp(4) + 2)
    assert result.probabilities[0, 1] == pytest.approx((2 * high + low) / 3)


def test_an_unreadable_video_lowers_the_count_openly(tmp_path: Path) -> None:
    files = {"names": ["a", "b", "c"], "paths": ["p/0.mp4", "p/1.mp4"], "about": {"crops": 3}}
    numbers = run([batch([1, 0], [0, 1], [1, 0], [1, 0])], labels=[1, 2], **files).write(tmp_path, {"split": "test"})
    assert (numbers["split"], numbers["crops"]) == ("test", 3)
    assert (numbers["videos"], numbers["unreadable"], numbers["top1"]) == (1, 1, 100.0)
    assert json.loads((tmp_path / "result.json").read_text()) == numbers
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[1].startswith("p/0.mp4,b,b,0.9") and lines[2] == "p/1.mp4,c,,,0,"
    assert lines[1].endswith("b:0.9647 a:0.0177 c:0.0177")
    assert [entry["top1"] for entry in numbers["classes"]] == [None, 100.0, None]
    assert (tmp_path / "confusion.png").stat().st_size > 100


def test_a_view_that_is_missing_is_counted() -> None:
    # Three views were asked for; both videos lack one, and a third video lacks all.
    votes = [batch([1, 2, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]), batch([1, 1], [1, 1], [0, 0], [0, 1])]
    numbers = run(votes, labels=[1, 0, 2]).numbers()
    assert (numbers["views_missing"], numbers["videos"], numbers["unreadable"]) == (2, 2, 1)


def test_entries_that_repeat_frames_are_counted_once() -> None:
    votes = [{**batch([1, 2], [0, 0], [1, 1], [1, 1]), "short": [(0, "a.mp4"), (0, "a.mp4"), (1, "a.mp4")]}]
    result = run(votes, labels=[1, 0], views=2)
    assert result.short == [(0, "a.mp4"), (1, "a.mp4")] and result.numbers()["short_videos"] == 2


def test_logits_or_probabilities_are_averaged() -> None:
    class Sure(Scripted):
        def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            # One view is very sure of class 2, two views prefer class 1 a little.
            return torch.tensor([[0.0, 0.0, 9.0], [0.0, 2.0, 0.0]])[batch["clip"][:, 0].long()]

    def merged(merge: str) -> np.ndarray:
        votes = [batch([0, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1])]
        device = torch.device("cpu")
        return evaluate(Sure(), votes, labels=np.array([1]), views=3, device=device, merge=merge)  # type: ignore

    by_probability, by_score = merged("prob"), merged("score")
    assert by_probability.scores[0].argmax() == 1 and by_score.scores[0].argmax() == 2
    assert by_score.scores[0] == pytest.approx([0.0, 4 / 3, 3.0])
    assert by_score.probabilities.sum() == pytest.approx(1.0)


def test_the_confusion_matrix_and_the_mean_over_classes() -> None:
    confusion = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4)
    assert confusion.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert class_accuracy(confusion)[:2] == pytest.approx([100.0, 100 / 3])
    assert np.isnan(class_accuracy(confusion)[2:]).all()


def test_topk_against_sorting_by_hand() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    for k in (1, 3, 7):
        by_hand = np.mean([labels[i] in np.argsort(scores[i])[::-1][:k] for i in range(200)]) * 100
        assert topk_accuracy(scores, labels, (k,))[0] == pytest.approx(by_hand)


def test_ties_go_to_the_lower_class_and_nothing_gives_nan() -> None:
    assert topk_accuracy(np.zeros((2, 3)), np.array([0, 2]), (1,)) == [50.0]
    assert np.isnan(topk_accuracy(np.zeros((0, 3)), np.zeros(0, dtype=int), (1,))[0])


def test_scores_that_are_not_finite_give_no_number() -> None:
    class Sick(Scripted):
        def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().logits(batch) * torch.tensor([1.0, float("nan")])[batch["clip"][:, 0].long(), None]

    votes = [batch([0, 1, 0], [0, 1, 2], [0, 1, 0], [1, 1, 1])]
    device = torch.device("cpu")
    with pytest.raises(DataError, match=r"scores of 1 of 3 videos are not finite[\s\S]*b.mp4"):
        evaluate(Sick(), votes, labels=np.zeros(3, int), views=1, device=device, paths=["a.mp4", "b.mp4", "c.mp4"])  # type: ignore
