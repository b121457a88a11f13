"""One short run, with whatever a test changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill_toys import (
    make_batches,
    make_tasks,
)
from torch import nn

from taskprune.distillation import (
    DistillResult,
    DistillSettings,
    StepRecord,
    distill,
)


def settings(steps: int = 4, **changes: Any) -> DistillSettings:
    return DistillSettings(**{"steps": steps, "learning_rate": 1e-2, "cpu": True, **changes})


def run(student: nn.Module, teacher: nn.Module, **changes: Any) -> DistillResult:
    arguments: dict[str, Any] = {
        "tasks": make_tasks(),
        "data": make_batches(),
        "settings": settings(),
        "taps": ["stem", "stage"],
        **changes,
    }
    return distill(student, teacher, **arguments)


def features(records: Sequence[StepRecord]) -> float:
    return sum(sum(record.features.values()) for record in records)
