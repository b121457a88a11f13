"""One reader: from rows of teacher and student to new weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.least_squares import Fit, Sums, error_through, fit, squared_error
from taskprune.compensation.reads import Geometry, TransposedGeometry
from taskprune.compensation.wide_readers import fit_rows
from taskprune.importance.distributed import summed

Part = tuple[Tensor, Tensor, Tensor]
"""Inputs ``[G, n, P]``, residuals ``[G, n, R]`` and weights ``[G, n]`` of one call."""


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Rows of one call in one batch, in float64.

    Attributes:
        whole: What the teacher reads. Shape ``[G, n, C, K]``.
        kept: What the student reads. Shape ``[G, n, P, K]``.
        made: What the teacher makes of it, of the outputs that stay. Shape ``[G, n, O]``;
            ``None`` where rows have no outputs of their own.
        weights: What each row counts. Shape ``[G, n]``.
        dtype: That the model computes in.
    """

    whole: Tensor
    kept: Tensor
    made: Tensor | None
    weights: Tensor
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Refitted:
    """New weights of a reader.

    Attributes:
        weight: Shape ``[G, O, P, K]``, float64.
        shift: To add to the bias, or to take off the running mean. Shape ``[G, O]``, float64.
        ridge: Of the fit of channels; infinite where that left all as sliced.
        tap_ridge: Of the fit of channels and taps that followed.
        gain: Fraction of the held-out error that both take away.
    """

    weight: Tensor
    shift: Tensor
    ridge: float
    tap_ridge: float
    gain: float


def refit(
    weight: Tensor,
    bias: Tensor,
    keep: Tensor,
    rows: list[Rows],
    *,
    geometry: Geometry,
    intercept: bool,
    settings: CompensationSettings,
) -> Refitted:
    """Let the kept channels say what all said.

    First each channel of the teacher is written as a sum of those that the student has, the same
    for all taps. Then what is still missing of the output is fitted with the taps apart.

    Args:
        weight: The teacher's, of the outputs that stay. Shape ``[G, O, C, K]``, float64.
        bias: Its bias, 0 where it has none. Shape ``[G, O]``, float64.
        keep: Numbers of the channels that stay. Shape ``[G, P]``.
        rows: What was read and made; of this process.
        geometry: Of the reader.
        intercept: Whether the output may be shifted.
        settings: Bounds.
    """
    n_blocks, n_outputs, n_channels, n_taps = weight.shape
    n_kept = keep.shape[1]
    parts = [_missing_channels(part, keep) for part in rows]
    sizes = (n_blocks, n_kept, n_channels)
    n_rows = _n_rows(parts, weight)
    by_rows = n_channels > settings.most_channels or n_rows < n_channels // 2
    first = _fitted(parts, sizes, weight, through=weight, intercept=intercept, by_rows=by_rows)
    index = keep[:, None, :, None].expand(-1, n_outputs, -1, n_taps)
    mapped = weight.gather(2, index)
    shift = torch.einsum("gock,gc->go", weight, first.shift)
    if not first.is_nothing:  # else the entries stay as they are, to the bit
        mapped = mapped + torch.einsum("gock,gpc->gopk", weight, first.matrix)
    if isinstance(geometry, TransposedGeometry):
        shift = geometry.shift(shift)
    second = Fit(mapped, shift)
    if geometry.by_output and n_kept * n_taps <= settings.most_unknowns:
        parts = [_missing_outputs(part, mapped, shift + bias) for part in rows]
        sizes = (n_blocks, n_kept * n_taps, n_outputs)
        by_rows = n_rows < n_kept * n_taps // 2
        second = _fitted(parts, sizes, weight, through=None, intercept=intercept, by_rows=by_rows)
        if not second.is_nothing:
            mapped = mapped + second.matrix.mT.reshape(mapped.shape)
            shift = shift + second.shift
    gain = 1 - (1 - first.gain) * (1 - second.gain)
    return Refitted(mapped, shift, first.ridge, second.ridge, gain)


def _missing_channels(rows: Rows, keep: Tensor) -> Part:
    """Return what is missing of each channel, of one tap a row, each tap in turn."""
    whole, kept = _one_tap(rows.whole), _one_tap(rows.kept)
    index = keep[:, None].expand(-1, whole.shape[1], -1)
    return kept, whole.scatter_add(2, index, -kept), rows.weights


def _missing_outputs(rows: Rows, weight: Tensor, offset: Tensor) -> Part:
    """Return what is missing of each output."""
    assert rows.made is not None
    x = rows.kept.flatten(2)
    missing = rows.made - x @ weight.flatten(2).mT - offset[:, None]
    # It is what the first fit left, under a ridge: single precision is plenty for products.
    narrow = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return x.to(narrow), missing.to(narrow), rows.weights.to(narrow)


def _fitted(
    parts: list[Part],
    sizes: tuple[int, int, int],
    like: Tensor,
    *,
    through: Tensor | None,
    intercept: bool,
    by_rows: bool,
) -> Fit:
    """Fit residuals, for themselves or for what a weight makes of them, by either route."""
    if by_rows:
        rows = [(x.double(), e.double(), w.double()) for x, e, w in parts]
        return fit_rows(rows, sizes, like, through=through, intercept=intercept)
    sums = _split_sums(parts, sizes, like, squares=through is None)
    error = squared_error if through is None else error_through(through)
    return fit(*sums, intercept=intercept, error=error)


def _n_rows(parts: list[Part], like: Tensor) -> int:
    """Return how many rows all processes have together."""
    return int(summed(like.new_tensor(float(sum(x.shape[1] for x, _, _ in parts)))))


def _split_sums(
    parts: list[Part], sizes: tuple[int, int, int], like: Tensor, *, squares: bool
) -> tuple[Sums, Sums]:
    """Add up; the last quarter of each call's rows, its last images, is kept out of the fit."""
    fitted = Sums.none(like, sizes, squares=True)
    held = Sums.none(like, sizes, squares=squares)
    for x, e, w in parts:
        cut = x.shape[1] - x.shape[1] // 4
        fitted = fitted + Sums.of(x[:, :cut], e[:, :cut], w[:, :cut], squares=True)
        held = held + Sums.of(x[:, cut:], e[:, cut:], w[:, cut:], squares=squares)
    return fitted.reduced(), held.reduced()


def _one_tap(x: Tensor) -> Tensor:
    """``[G, n, C, K] -> [G, n, C]``."""
    if x.shape[3] == 1:
        return x[..., 0]
    taps = torch.arange(x.shape[1], device=x.device) % x.shape[3]
    return x.gather(3, taps[None, :, None, None].expand(*x.shape[:3], 1))[..., 0]
