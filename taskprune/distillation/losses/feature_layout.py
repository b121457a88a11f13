"""The layouts of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from taskprune.errors import InputError

FeatureLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(student, teacher) -> scalar``, on maps ``[B, C, H, W]`` or ``[B, C, D, H, W]``, tokens
``[B, N, C]`` or vectors ``[B, C]``."""


def channel_rows(features: Tensor) -> Tensor:
    """Return features as ``[B, C, P]`` in at least float32, ``P`` counting positions.

    Args:
        features: A map ``[B, C, H, W]`` or ``[B, C, D, H, W]``, tokens ``[B, N, C]`` or vectors
            ``[B, C]``, which have one position.

    Raises:
        InputError: The tensor has another number of dims.
    """
    if not 2 <= features.dim() <= 5:
        raise InputError(
            "Feature losses compare maps [B, C, H, W] or [B, C, D, H, W], tokens [B, N, C] or "
            f"vectors [B, C]. Found shape {tuple(features.shape)}. Tap another module, or write "
            "your own feature loss."
        )
    if features.dim() == 2:
        rows = features[:, :, None]
    else:
        rows = features.transpose(1, 2) if features.dim() == 3 else features.flatten(2)
    # Reductions over equal values in another memory layout differ in the last bit.
    return at_least_float32(rows.contiguous())


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is if it is more precise.

    Sums over a whole map overflow float16 and lose most of bfloat16's eight bits.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def paired_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as ``[B, C, P]``; for losses that compare channel by channel.

    Raises:
        InputError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"This loss compares channel by channel. Found student features of shape "
            f"{tuple(student.shape)} and teacher features of shape {tuple(teacher.shape)}. Bring "
            "them to one shape first."
        )
    return channel_rows(student), channel_rows(teacher)
