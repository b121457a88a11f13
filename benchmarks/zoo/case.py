"""What a net of the zoo is, and ``@net``, which registers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import FreezeKind

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, eq=False)
class NetCase:
    """One net of the zoo.

    Attributes:
        make: Builds it.
        inputs: Builds its example inputs, float64.
        channels: How many channels can be removed, all groups together.
        frozen: Kinds of freeze reasons that must be reported, besides ``interface``.
        tasks: Output paths of its tasks.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    channels: int
    frozen: frozenset[FreezeKind] = frozenset()
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return getattr(self.make, "__name__", "net")


ZOO: list[NetCase] = []


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Callable[[], Tensor]:
    """Return a maker of images."""
    return lambda: torch.randn(
        batch, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def tokens(width: int = 6, length: int = 5, batch: int = 2) -> Callable[[], Tensor]:
    """Return a maker of token sequences."""
    return lambda: torch.randn(
        batch, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def net(
    channels: int,
    inputs: Callable[[], Inputs] | None = None,
    *,
    frozen: tuple[FreezeKind, ...] = (),
    tasks: Mapping[str, tuple[str, ...]] | None = None,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a net."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        assert cls.__doc__, f"{cls.__name__} must name its trap"
        ZOO.append(NetCase(cls, inputs or image(), channels, frozenset(frozen), tasks or {}))
        return cls

    return register


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)
