"""A small two-task net with its coupling groups written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.calling.task import Task
from taskprune.coupling.groups import (
    CouplingGroup,
    CouplingGroups,
    LinearForm,
    MacsTerm,
    TensorSlice,
)
from taskprune.importance import ChannelScores

TRUNK, FIRST, SECOND = "stem", "first.0", "second.0"


class TwoTaskNet(nn.Module):
    """Stem with batch norm, a residual block, and two heads with a hidden layer each.

    The residual block makes a square weight of which both dims belong to the stem's group.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.square = nn.Conv2d(8, 8, 1)
        self.first = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        self.second = nn.Sequential(nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.square(x)
        return {"first": self.first(x.mean((2, 3))), "second": self.second(x)}


def two_task_net(seed: int = 0) -> TwoTaskNet:
    torch.manual_seed(seed)
    net = TwoTaskNet()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.bias.uniform_(-0.5, 0.5)
        net.norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
        net.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return net


def entries(name: str, dim: int, n: int, *, produces: bool = True) -> TensorSlice:
    return TensorSlice(name, dim, np.arange(n, dtype=np.int64)[:, None], produces)


def two_task_groups(net: nn.Module) -> CouplingGroups:
    stem = CouplingGroup(
        TRUNK,
        8,
        (
            *(entries(f"stem.{n}", 0, 8) for n in ("weight", "bias")),
            *(
                entries(f"norm.{n}", 0, 8)
                for n in ("weight", "bias", "running_mean", "running_var")
            ),
            *(entries(f"square.{n}", 0, 8) for n in ("weight", "bias")),
            entries("square.weight", 1, 8, produces=False),
            entries("first.0.weight", 1, 8, produces=False),
            entries("second.0.weight", 1, 8, produces=False),
        ),
        tasks=frozenset({"first", "second"}),
    )
    first = CouplingGroup(
        FIRST,
        6,
        (
            *(entries(f"first.0.{n}", 0, 6) for n in ("weight", "bias")),
            entries("first.2.weight", 1, 6, produces=False),
        ),
        tasks=frozenset({"first"}),
    )
    second = CouplingGroup(
        SECOND,
        5,
        (
            *(entries(f"second.0.{n}", 0, 5) for n in ("weight", "bias")),
            entries("second.2.weight", 1, 5, produces=False),
        ),
        tasks=frozenset({"second"}),
    )
    parameters = dict(net.named_parameters())
    s, a, b = (LinearForm(0, {g: 1}) for g in (TRUNK, FIRST, SECOND))
    conv, linear = "aten.convolution.default", "aten.addmm.default"
    return CouplingGroups(
        groups=(stem, first, second),
        frozen=(),
        shapes={
            name: tuple(t.shape)
            for name, t in (parameters | dict(net.named_buffers())).items()
            if t.ndim
        },
        parameter_names=frozenset(parameters),
        macs=(
            MacsTerm(conv, "stem", 2 * 64 * 27, (s,)),
            MacsTerm(conv, "square", 2 * 64, (s, s)),
            MacsTerm(linear, "first.0", 2, (s, a)),
            MacsTerm(linear, "first.2", 2 * 3, (a,)),
            MacsTerm(conv, "second.0", 2 * 64, (s, b)),
            MacsTerm(conv, "second.2", 2 * 64, (b,)),
        ),
        tasks=("first", "second"),
        batch_size=2,
    )


Batch = tuple[Tensor, dict[str, Tensor]]


def batches(n: int = 4, size: int = 2, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            {
                "first": torch.randint(0, 3, (size,), generator=generator),
                "second": torch.rand(size, 1, 8, 8, generator=generator),
            },
        )
        for _ in range(n)
    ]


def first_loss(outputs: Any, batch: Any) -> Tensor:
    return F.cross_entropy(outputs["first"], batch[1]["first"])


def second_loss(outputs: Any, batch: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs["second"], batch[1]["second"])


def scaled(loss: Callable[[Any, Any], Tensor], factor: float) -> Callable[[Any, Any], Tensor]:
    return lambda outputs, batch: factor * loss(outputs, batch)


def two_tasks() -> dict[str, Task]:
    return {"first": Task(first_loss), "second": Task(second_loss)}


def totals(found: ChannelScores) -> dict[str, Tensor]:
    return {name: own.total for name, own in found.groups.items()}


def conflict_of(found: ChannelScores, group: str) -> Tensor:
    conflict = found[group].conflict
    assert conflict is not None, "the criterion has no such term"
    return conflict
