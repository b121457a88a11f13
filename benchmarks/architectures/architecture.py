"""A stock architecture, as benchmarks and tests want it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One architecture of a public library, small enough to run on a laptop.

    Attributes:
        name: ``"<library>/<model>"``, such as ``"timm/cait_xxs24_224"``.
        make: Builds the model with random weights; nothing is downloaded. Call it with a fixed
            seed; norm statistics are still torch's defaults, so tests call
            :func:`taskprune.testing.randomise_`.
        inputs: Makes example inputs of one batch: a tensor, a tuple of arguments or a dict of
            keywords.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]

    def __str__(self) -> str:
        return self.name
