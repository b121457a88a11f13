"""Overhaul of feature distillation (OFD): partial L2 against a margin ReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from taskprune.distillation.losses.feature_layout import paired_rows


def ofd(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean of :math:`(t' - s)^2`, but 0 where :math:`s \le t' \le 0`.

    :math:`t' = \max(t, m_c)` is the teacher after a margin ReLU: strongly negative values say no
    more than "off", so a student that is off as well is left alone. Meant for features *before* the
    activation, so tap norms or convolutions; after a ReLU it is plain L2.

    The margin :math:`m_c` is the mean of a channel's negative values, which the paper computes from
    the statistics of the norm or from training samples; here the samples are those of the batch.

    Args:
        student: ``[B, C, H, W]``, ``[B, C, D, H, W]``, ``[B, N, C]`` or ``[B, C]``.
        teacher: The same shape.

    Raises:
        InputError: The shapes differ.

    References:
        Heo et al., *A Comprehensive Overhaul of Feature Distillation*, ICCV 2019,
        arXiv:1904.01866, section 3 (margin ReLU, partial L2 distance).
    """
    rows, target = paired_rows(student, teacher)
    with torch.no_grad():
        target = torch.maximum(target, _margin(target))
    is_off = (rows <= target) & (target <= 0)
    return (target - rows).square().masked_fill(is_off, 0.0).mean()


def _margin(rows: Tensor) -> Tensor:
    """Return the mean of each channel's negative values, 0 where there are none; ``[1, C, 1]``."""
    n_negative = (rows < 0).sum(dim=(0, 2), keepdim=True)
    return rows.clamp(max=0).sum(dim=(0, 2), keepdim=True) / n_negative.clamp(min=1)
