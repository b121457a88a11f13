"""What a run of distillation consists of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from taskprune.calling.forward import Forward
from taskprune.calling.task import Task
from taskprune.distillation.objective import StudentObjective
from taskprune.distillation.recording import FeatureRecorder
from taskprune.distillation.settings import DistillSettings
from taskprune.distillation.shards import copy_whole


@dataclass(frozen=True)
class Run:
    """Everything a run needs, checked and on its device.

    Attributes:
        objective: The student with its alignments.
        teacher: In eval mode.
        teacher_recorder: Reads the teacher's taps.
        tasks: Losses and weights.
        data: The batches.
        forward: ``(model, batch) -> outputs``.
        settings: The user's settings.
        n_steps: Optimizer steps in all.
        checksums: Of both models as the run began, where it has a directory.
        original: The user's student, where the objective holds a sharded copy of it.
    """

    objective: StudentObjective
    teacher: nn.Module
    teacher_recorder: FeatureRecorder
    tasks: Mapping[str, Task]
    data: Iterable[Any]
    forward: Forward
    settings: DistillSettings
    n_steps: int
    checksums: Mapping[str, int]
    original: nn.Module | None = None

    def give_back(self) -> None:
        """Give the user's student the weights of its sharded copy, if there is one."""
        if self.original is not None:
            copy_whole(self.objective.student, self.original)
