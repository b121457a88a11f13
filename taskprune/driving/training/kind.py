"""What the training loop needs to know of a kind of net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskprune import Task
from taskprune.driving.data.sample import collate
from taskprune.driving.evaluation import evaluate
from taskprune.driving.netfile import save_net
from taskprune.driving.tasks import driving_tasks, forward


@dataclass(frozen=True)
class NetKind:
    """Tasks, data and files of a kind of net.

    Attributes:
        tasks: Whose losses, each times its weight, are added up.
        forward: ``(net, batch) -> outputs``.
        collate: Makes a batch of samples. Batches have ``to(device)``.
        evaluate: ``(net, batches) -> {task: {metric: value}}``, each in 0..1.
        save: ``(net, path)``; writes a file from which the net can be built.
    """

    tasks: Mapping[str, Task]
    forward: Callable[[nn.Module, Any], Any]
    collate: Callable[[Sequence[Any]], Any]
    evaluate: Callable[[nn.Module, Iterable[Any]], Mapping[str, Mapping[str, float]]]
    save: Callable[[Any, Path], None]


PANOPTIC = NetKind(driving_tasks(), forward, collate, evaluate, save_net)
"""The three-task driving nets."""
