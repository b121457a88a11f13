"""Turn a loss on parts of the outputs into one on whole outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OnOutputs:
    """Compare what ``select`` picks from both models' outputs.

    Example:
        >>> DistillSettings(
        ...     steps=1000,
        ...     output_losses={"lane": OnOutputs(lambda out: out["lane"], logit_kl, weight=0.5)},
        ... )

    Attributes:
        select: ``outputs -> what the loss compares``.
        loss: ``(student part, teacher part) -> scalar``, for example ``logit_kl`` or
            ``query_matching``.
        weight: Factor of the loss.
    """

    select: Callable[[Any], Any]
    loss: Callable[[Any, Any], Tensor]
    weight: float = 1.0

    def __call__(self, student: Any, teacher: Any) -> Tensor:
        """Return the weighted loss."""
        return self.weight * self.loss(self.select(student), self.select(teacher))
