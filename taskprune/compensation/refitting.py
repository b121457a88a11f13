"""One reader: from rows of teacher and student to new weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskprune.compensation.least_squares import (
    Sums,
    error_through,
    fit,
    squared_error,
)
from taskprune.compensation.reads import Geometry, TransposedGeometry


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Rows of one call in one batch. All are float64.

    Attributes:
        whole: What the teacher reads. Shape ``[G, n, C, K]``.
        kept: What the student reads. Shape ``[G, n, P, K]``.
        made: What the teacher makes of it, of the outputs that stay. Shape ``[G, n, O]``;
            ``None`` where rows have no outputs of their own.
        weights: What each row counts. Shape ``[G, n]``.
        is_narrow: Whether the model computes in less than float64.
    """

    whole: Tensor
    kept: Tensor
    made: Tensor | None
    weights: Tensor
    is_narrow: bool = True


@dataclass(frozen=True, eq=False)
class Refitted:
    """New weights of a reader.

    Attributes:
        weight: Shape ``[G, O, P, K]``, float64.
        shift: To add to the bias, or to take off the running mean. Shape ``[G, O]``, float64.
        ridge: Of the channel map.
        tap_ridge: Of the second fit, over taps and channels together.
        gain: Fraction of the error that both take away.
    """

    weight: Tensor
    shift: Tensor
    ridge: float
    tap_ridge: float
    gain: float


def refit(
    weight: Tensor,
    keep: Tensor,
    rows: Iterable[Rows],
    *,
    geometry: Geometry,
    intercept: bool,
    bias: Tensor | None,
    most_unknowns: int,
) -> Refitted:
    """Let the kept channels say what all said.

    First each dropped channel is written as a sum of kept ones, the same for all taps. Then what is
    still missing of the output is fitted with the taps apart.

    Args:
        weight: The teacher's, of the outputs that stay. Shape ``[G, O, C, K]``, float64.
        keep: Numbers of the channels that stay. Shape ``[G, P]``.
        rows: What was read and made.
        geometry: Of the reader.
        intercept: Whether the output may be shifted.
        bias: The teacher's, of the outputs that stay, as far as it is in what was made. Shape
            ``[G, O]``.
        most_unknowns: Channels times taps up to which the second fit is made.
    """
    rows = list(rows)
    n_taps = weight.shape[3]
    fitted, held = _sums_of_channels(rows, keep)
    first = fit(fitted, held, intercept=intercept, error=error_through(weight))
    index = keep[:, None, :, None].expand(-1, weight.shape[1], -1, n_taps)
    mapped = weight.gather(2, index)
    # Exactly what was there where nothing helps.
    if first.ridge != torch.inf:
        mapped = mapped + torch.einsum("gock,gpc->gopk", weight, first.matrix)
    shift = torch.einsum("gock,gc->go", weight, first.shift)
    if isinstance(geometry, TransposedGeometry):
        return Refitted(mapped, geometry.shift(shift), first.ridge, torch.inf, first.gain)
    unknowns = keep.shape[1] * n_taps
    if any(part.made is None for part in rows) or unknowns > most_unknowns:
        return Refitted(mapped, shift, first.ridge, torch.inf, first.gain)
    offset = shift if bias is None else shift + bias
    fitted, held = _sums_of_outputs(rows, mapped, offset)
    second = fit(fitted, held, intercept=intercept, error=squared_error)
    if second.ridge != torch.inf:
        change = second.matrix.mT.unflatten(2, (keep.shape[1], n_taps))
        mapped = mapped + change
        shift = shift + second.shift
    gain = 1 - (1 - first.gain) * (1 - second.gain)
    return Refitted(mapped, shift, first.ridge, second.ridge, gain)


def _sums_of_channels(rows: list[Rows], keep: Tensor) -> tuple[Sums, Sums]:
    """Moments of what is missing of each channel, of one tap a row, each in turn."""
    parts = []
    for part in rows:
        whole, kept = _one_tap(part.whole), _one_tap(part.kept)
        index = keep[:, None].expand(-1, whole.shape[1], -1)
        parts.append((kept, whole.scatter_add(2, index, -kept), part.weights))
    return _split_sums(parts, squares=False)


def _sums_of_outputs(rows: list[Rows], weight: Tensor, offset: Tensor) -> tuple[Sums, Sums]:
    """Moments of what is missing of each output."""
    parts = []
    for part in rows:
        assert part.made is not None
        x = part.kept.flatten(2)
        missing = part.made - x @ weight.flatten(2).mT - offset[:, None]
        # Residuals of what the first fit left, under a ridge: single precision is plenty.
        narrow = torch.float32 if part.is_narrow else torch.float64
        parts.append((x.to(narrow), missing.to(narrow), part.weights.to(narrow)))
    return _split_sums(parts, squares=True)


def _split_sums(
    parts: list[tuple[Tensor, Tensor, Tensor]], *, squares: bool
) -> tuple[Sums, Sums]:
    """Add up; the last quarter of each call's rows, its last images, is kept out of the fit."""
    fitted: Sums | None = None
    held: Sums | None = None
    for x, e, w in parts:
        cut = x.shape[1] - x.shape[1] // 4
        # The products of residuals only tell errors, and errors of what was fitted nobody asks.
        first = Sums.of(x[:, :cut], e[:, :cut], w[:, :cut], squares=True)
        last = Sums.of(x[:, cut:], e[:, cut:], w[:, cut:], squares=squares)
        fitted = first if fitted is None else fitted + first
        held = last if held is None else held + last
    assert fitted is not None and held is not None
    return fitted.reduced(), held.reduced()


def _one_tap(x: Tensor) -> Tensor:
    """``[G, n, C, K] -> [G, n, C]``."""
    if x.shape[3] == 1:
        return x[..., 0]
    taps = torch.arange(x.shape[1], device=x.device) % x.shape[3]
    return x.gather(3, taps[None, :, None, None].expand(*x.shape[:3], 1))[..., 0]
