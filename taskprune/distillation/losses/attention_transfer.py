"""Attention transfer: where a layer is active, whatever its channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import (
    channel_free,
    channel_rows,
    check_positions,
    positional,
)
from taskprune.errors import InputError


@channel_free
@positional
def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return the mean over the batch of :math:`\| Q(s) / \|Q(s)\|_2 - Q(t) / \|Q(t)\|_2 \|_2^2`.

    :math:`Q(x)_p = \sum_c x_{c,p}^2` is the map of activity. Needs no equal channel counts, hence
    no adapter, and is blind to the overall scale; between 0 and 2.

    Args:
        student: ``[B, C_s, H, W]`` or ``[B, N, C_s]``.
        teacher: ``[B, C_t, H, W]`` or ``[B, N, C_t]``.

    Raises:
        InputError: Batch or positions differ, or there is one position.

    References:
        Zagoruyko and Komodakis, *Paying More Attention to Attention*, ICLR 2017,
        arXiv:1612.03928, equation 2 with p = 2, squared.
    """
    rows, target = channel_rows(student), channel_rows(teacher)
    if rows.shape[::2] != target.shape[::2]:
        raise InputError(
            "Attention transfer compares the same batch and positions. Found student features of "
            f"shape {tuple(student.shape)} and teacher features of shape {tuple(teacher.shape)}."
        )
    check_positions(rows)
    return (_attention(rows) - _attention(target)).square().sum(dim=1).mean()


def _attention(rows: Tensor) -> Tensor:
    return F.normalize(rows.square().sum(dim=1), dim=1)  # [B, P]
