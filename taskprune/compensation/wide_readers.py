r"""Ridge regression from rows themselves, where products of channels do not fit or are more work.

With *N* rows and more channels than that, the same map as in :mod:`.least_squares` is found in the
space of rows:

.. math:: D = E^T W^{1/2} \, (W^{1/2} X X^T W^{1/2} + \lambda I)^{-1} \, W^{1/2} X
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskprune.compensation.least_squares import TINY, Fit, chosen_ridge
from taskprune.importance.distributed import gathered

MOST_ROWS = 2048


def fit_rows(
    parts: list[tuple[Tensor, Tensor, Tensor]],
    shape: tuple[int, int, int],
    like: Tensor,
    *,
    through: Tensor | None,
    intercept: bool,
) -> Fit:
    """Choose the ridge on held-out rows, then fit on all.

    Args:
        parts: Inputs ``[G, n, P]``, residuals ``[G, n, R]`` and weights ``[G, n]`` of each call.
        shape: ``(G, P, R)``.
        like: On the device, float64.
        through: What the residuals go through, ``[G, O, R, K]``, for their error; ``None`` if they
            count themselves.
        intercept: Whether the result may be shifted.
    """
    n_blocks, _, n_residuals = shape
    nothing = Fit(like.new_zeros(shape), like.new_zeros(n_blocks, n_residuals))
    fitted = _joined([_cut(part, first=True) for part in parts])
    held = _joined([_cut(part, first=False) for part in parts])
    if fitted is None or held is None:
        return nothing

    def error(matrix: Tensor, shift: Tensor) -> float:
        x, e, w = held
        left = e - x @ matrix - shift[:, None]
        if through is not None:
            left = torch.einsum("gnr,gork->gnok", left, through).flatten(2)
        return float((left.square().sum(2) * w).sum())

    base = error(nothing.matrix, nothing.shift)
    winner, best = chosen_ridge(
        base, lambda ridge: error(*_solved(*fitted, ridge, intercept=intercept))
    )
    if winner == torch.inf:
        return nothing
    everything = tuple(torch.cat(pair, 1) for pair in zip(fitted, held, strict=True))
    found = _solved(everything[0], everything[1], everything[2], winner, intercept=intercept)
    return Fit(*found, winner, 1 - best / base)


def _solved(
    x: Tensor, e: Tensor, w: Tensor, ridge: float, *, intercept: bool
) -> tuple[Tensor, Tensor]:
    total = w.sum(1).clamp_min(TINY)[:, None]
    mean_x = (x * w[..., None]).sum(1) / total
    mean_e = (e * w[..., None]).sum(1) / total
    if not intercept:
        mean_x, mean_e = torch.zeros_like(mean_x), torch.zeros_like(mean_e)
    root = w.sqrt()[..., None]
    x, e = (x - mean_x[:, None]) * root, (e - mean_e[:, None]) * root
    products = x @ x.mT
    scale = products.diagonal(dim1=1, dim2=2).sum(1) / x.shape[2]
    damping = (ridge * scale).clamp_min(TINY)[:, None].expand(-1, x.shape[1])
    factor = torch.linalg.cholesky(products + torch.diag_embed(damping))
    matrix = x.mT @ torch.cholesky_solve(e, factor)
    return matrix, mean_e - (mean_x[:, None] @ matrix)[:, 0]


def _cut(part: tuple[Tensor, Tensor, Tensor], *, first: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, e, w = part
    bound = x.shape[1] - x.shape[1] // 4
    where = slice(0, bound) if first else slice(bound, None)
    return x[:, where], e[:, where], w[:, where]


def _joined(
    parts: list[tuple[Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Lay rows side by side, those of all processes, thinned out evenly."""
    everyone = [part for found in gathered(parts) for part in found if part[0].shape[1]]
    if not everyone:
        return None
    x, e, w = (torch.cat(list(column), 1) for column in zip(*everyone, strict=True))
    step = -(-x.shape[1] // MOST_ROWS)
    return x[:, ::step], e[:, ::step], w[:, ::step]
