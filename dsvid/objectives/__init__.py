"""Objectives: one module per task, batch -> loss and logged numbers."""

from dsvid.objectives.classify import ClassifyObjective
from dsvid.objectives.detect import DetectObjective
from dsvid.objectives.output import Batch, Output
from dsvid.objectives.pretrain import PretrainObjective

__all__ = ["Batch", "ClassifyObjective", "DetectObjective", "Output", "PretrainObjective"]
