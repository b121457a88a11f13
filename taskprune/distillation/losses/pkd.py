"""Pearson correlation of feature maps (PKD), the default."""

from __future__ import annotations

import torch
from torch import Tensor

from taskprune.distillation.losses.feature_layout import paired_rows

RELATIVE_FLOOR = 1e-6
"""Added to a channel's variance, as a part of the map's mean variance."""


def pkd(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean over channels of :math:`1 - r_c`, Pearson's correlation.

    Computed as half the mean squared difference of both maps after each channel was standardised
    over batch and positions, which is the same number and exactly 0 for equal features.

    The default: no scale enters, neither of layers nor of channels, so one weight does for all
    taps, and a student whose normalisation statistics moved after pruning is not punished for it.

    Args:
        student: ``[B, C, H, W]``, ``[B, C, D, H, W]``, ``[B, N, C]`` or ``[B, C]``.
        teacher: The same shape.

    Raises:
        InputError: The shapes differ.

    References:
        Cao et al., *PKD: General Distillation Framework for Object Detectors via Pearson
        Correlation Coefficient*, NeurIPS 2022, arXiv:2207.02039, equations 4 and 5.
    """
    rows, target = paired_rows(student, teacher)
    return 0.5 * (_standardised(rows) - _standardised(target)).square().mean()


def _standardised(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=(0, 2), keepdim=True)
    variance = centred.square().mean(dim=(0, 2), keepdim=True)  # [1, C, 1]
    # A dead channel has no direction to follow; an absolute floor would break scale freedom, and
    # none at all would give such a channel an unbounded gradient.
    scale = variance.detach().mean()
    floor = torch.where(scale > 0, RELATIVE_FLOOR * scale, 1.0)
    return centred * (variance + floor).rsqrt()
