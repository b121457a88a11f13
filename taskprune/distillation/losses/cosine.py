"""Cosine distance between the channel vectors of each position."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import paired_rows


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return :math:`\frac{1}{BP}\sum_{b,p} 1 - \cos(s_{b,:,p},\, t_{b,:,p})`.

    Blind to the length of a position's channel vector, not to the scale of single channels. A
    position where either vector is zero counts as 1.

    Args:
        student: ``[B, C, H, W]``, ``[B, C, D, H, W]``, ``[B, N, C]`` or ``[B, C]``.
        teacher: The same shape.

    Raises:
        InputError: The shapes differ.
    """
    rows, target = paired_rows(student, teacher)
    return (1.0 - F.cosine_similarity(rows, target, dim=1)).mean()
