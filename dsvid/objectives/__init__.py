"""Objectives: one module per task, batch -> loss and logged numbers."""

from dsvid.objectives.anomaly import AnomalyObjective
from dsvid.objectives.classify import ClassifyObjective
from dsvid.objectives.detect import DetectObjective
from dsvid.objectives.output import Batch, Output
from dsvid.objectives.pretrain import PretrainObjective

__all__ = ["AnomalyObjective", "Batch", "ClassifyObjective", "DetectObjective", "Output", "PretrainObjective"]
