"""The layouts of features, and which losses look at single channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor

from taskprune.errors import InputError

FeatureLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(student, teacher) -> scalar``, on maps ``[B, C, H, W]`` or ``[B, C, D, H, W]``, tokens
``[B, N, C]`` or vectors ``[B, C]``."""


@runtime_checkable
class FittedFeatureLoss(Protocol):
    """A feature loss with parameters of its own, such as ``MGD``: it is made for each tap.

    What it makes is trained with the student, saved in checkpoints and thrown away in the end.
    """

    def for_feature(self, teacher: Tensor, /) -> FeatureLoss:
        """Return the loss, an ``nn.Module``, for a tap with this (aligned) teacher feature."""


_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


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
            f"{tuple(student.shape)} and teacher features of shape {tuple(teacher.shape)}. Align "
            "them first (`taskprune.distillation.make_alignment`), or use `attention_transfer`."
        )
    return channel_rows(student), channel_rows(teacher)


def channel_free(loss: _Loss) -> _Loss:
    """Mark a feature loss that needs no equal channel counts, so that it gets no adapter."""
    loss.compares_channels = False  # type: ignore[attr-defined]
    return loss


def compares_channels(loss: Callable[..., Any] | FittedFeatureLoss) -> bool:
    """Whether student and teacher need the same channels for this loss."""
    return _marked(loss, "compares_channels", default=True)


def positional(loss: _Loss) -> _Loss:
    """Mark a feature loss that compares positions, so that features with one are refused."""
    loss.compares_positions = True  # type: ignore[attr-defined]
    return loss


def compares_positions(loss: Callable[..., Any] | FittedFeatureLoss) -> bool:
    """Whether this loss is constant for features with a single position."""
    return _marked(loss, "compares_positions", default=False)


def _marked(loss: Callable[..., Any] | FittedFeatureLoss, mark: str, *, default: bool) -> bool:
    """Return a mark of a loss, also where settings are bound to it."""
    while isinstance(loss, partial):
        loss = loss.func
    return bool(getattr(loss, mark, default))


def check_positions(rows: Tensor, where: str = "") -> None:
    """Refuse ``[B, C, 1]`` for a loss that compares positions: it would be 0 and teach nothing.

    Raises:
        InputError: There is one position.
    """
    if rows.shape[2] < 2:
        raise InputError(
            f"{where}This loss compares positions, and the features have one. Compare vectors by "
            "`pkd`, `mse`, `cosine` or `ofd`, or tap a module that puts out maps or tokens."
        )
