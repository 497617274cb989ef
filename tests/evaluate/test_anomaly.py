"""What an evaluation of traffic anomaly detection says of given logits: measures, groups, files; one class, nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dsvid.data import traffic_generated
from dsvid.data.traffic_split import TrafficSplit, open_traffic
from dsvid.errors import DataError
from dsvid.evaluate.anomaly import AnomalyResult, detect_anomalies
from dsvid.recipe import AnomalyConfig, DataConfig


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> TrafficSplit:
    folder = tmp_path_factory.mktemp("drives")
    traffic_generated.make_set(folder, {"val": 6})
    data = DataConfig(root=str(folder), train="", val="val_split.txt", num_frames=4, view_fps=10)
    return open_traffic(data, AnomalyConfig(padding="repeat"), "val")


def result(split: TrafficSplit, risk: np.ndarray, read: np.ndarray | None = None) -> AnomalyResult:
    logits = np.stack([np.zeros(len(risk)), risk], axis=1).astype(np.float64)
    return AnomalyResult(split, logits, np.ones(len(risk), dtype=bool) if read is None else read, [], [])


def test_a_model_that_knows_and_one_that_does_not(split: TrafficSplit, tmp_path: Path) -> None:
    labels = split.labels()
    known = result(split, np.where(labels == 1, 3.0, -3.0))
    assert known.numbers()["auroc"] == known.numbers()["ap"] == known.numbers()["mcc_05"] == 1.0
    constant = result(split, np.zeros(len(split)))
    assert constant.numbers()["auroc"] == 0.5 and constant.numbers()["mcc_max"] == 0.0
    content = known.write(tmp_path, {"step": 3})
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["step"] == 3 and stored["auroc"] == content["auroc"] and stored["anomalies"] == labels.sum()
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [int(row["label"]) for row in rows] == labels.tolist() and len({row["clip"] for row in rows}) == 6


def test_groups_are_of_clips_and_add_up(split: TrafficSplit) -> None:
    groups = result(split, np.arange(len(split)) / 100).groups()
    assert groups["ego"]["frames"] + groups["nonego"]["frames"] == groups["total"]["frames"] == len(split)
    assert groups["ego"]["clips"] + groups["nonego"]["clips"] == 6
    every = sum(values["frames"] for name, values in groups.items() if name.endswith("/all"))
    assert every == len(split) and all("auc_mcc" in values for values in groups.values())


def test_one_class_only_is_null_and_not_zero(split: TrafficSplit, tmp_path: Path) -> None:
    safe = result(split, np.zeros(len(split)), read=split.labels() == 0)
    assert np.isnan(safe.numbers()["auroc"]) and safe.numbers()["unreadable"] == int(split.labels().sum())
    safe.write(tmp_path, {})
    assert json.loads((tmp_path / "result.json").read_text())["auroc"] is None


def test_what_was_not_read_is_in_no_measure(split: TrafficSplit) -> None:
    labels = split.labels()
    risk = np.where(labels == 1, 3.0, -3.0)
    risk[:10] = np.where(labels[:10] == 1, -9.0, 9.0)
    read = np.ones(len(split), dtype=bool)
    read[:10] = False
    assert result(split, risk, read).numbers()["auroc"] == 1.0 > result(split, risk).numbers()["auroc"]
    assert not result(split, risk, np.zeros(len(split), dtype=bool)).any_read


class Scripted(nn.Module):
    """Stands where the objective stands: the clip's first byte becomes the risk."""

    def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        risk = batch["clip"][:, 0].float()
        return torch.stack([torch.zeros_like(risk), torch.where(risk == 255, torch.nan, risk)], dim=1)


def scripted(index: list[int], risk: list[int], weight: list[float], **told: object) -> dict[str, object]:
    clip = torch.tensor(risk, dtype=torch.uint8)[:, None]
    return {"clip": clip, "index": torch.tensor(index), "weight": torch.tensor(weight), "bad": [], **told}


def test_padding_and_unreadable_windows_are_not_judged(split: TrafficSplit) -> None:
    batches = [
        scripted([0, 1], [3, 9], [1, 0], bad=[{"path": "gone", "error": "no such file"}]),
        scripted([2, 0], [5, 7], [1, 0]),
    ]
    found = detect_anomalies(Scripted(), batches, split, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert np.flatnonzero(found.read).tolist() == [0, 2]
    assert found.logits[[0, 1, 2], 1].tolist() == [3.0, 0.0, 5.0]
    assert found.numbers()["frames"] == 2 and len(found.unreadable) == 1


def test_logits_that_are_not_finite_give_no_number(split: TrafficSplit) -> None:
    with pytest.raises(DataError, match=r"logits of 1 of \d+ frames are not finite"):
        detect_anomalies(Scripted(), [scripted([0, 1], [3, 255], [1, 1])], split, device=torch.device("cpu"))  # type: ignore[arg-type]
