r"""Ridge regression from sums over rows, block by block, shrunk towards leaving things alone.

With inputs :math:`x`, residuals :math:`e` and weights :math:`w` of rows, the map

.. math:: D = \arg\min_D \sum_n w_n \|e_n - D x_n\|^2 + \lambda \|D\|^2, \qquad
          \lambda = \rho \, \overline{\mathrm{diag}} \textstyle\sum_n w_n x_n x_n^T

is found for several :math:`\rho`; the one that serves rows best that had no part in it wins, and
:math:`D = 0` competes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taskprune.importance.distributed import summed

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(eq=False)
class Sums:
    """Weighted second moments of inputs and residuals, of rows that are fitted or held out.

    Attributes:
        n: Sum of weights. Shape ``[G]``.
        x, e: Weighted sums. Shapes ``[G, P]``, ``[G, R]``.
        xx, xe, ee: Weighted products: ``[G, P, P]``, ``[G, P, R]``, ``[G, R, R]`` or, where only
            the squares are needed, ``[G, R]``.
    """

    n: Tensor
    x: Tensor
    e: Tensor
    xx: Tensor
    xe: Tensor
    ee: Tensor

    @classmethod
    def of(cls, x: Tensor, e: Tensor, w: Tensor, *, squares: bool) -> Sums:
        """Add up rows.

        Args:
            x: Inputs. Shape ``[G, n, P]``.
            e: Residuals. Shape ``[G, n, R]``.
            w: Weights. Shape ``[G, n]``.
            squares: Keep of the residuals' products the diagonal alone.
        """
        wx, we = x * w[..., None], e * w[..., None]
        products = x.mT @ wx, x.mT @ we, (e * we).sum(1) if squares else e.mT @ we
        return cls(*(sums.double() for sums in (w.sum(1), wx.sum(1), we.sum(1), *products)))

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def with_(self, other: Sums) -> Sums:
        """Return the sums of both, without the products of residuals."""
        return replace(self, ee=self.e) + replace(other, ee=other.e)

    def reduced(self) -> Sums:
        """Return the sums of all processes."""
        return Sums(*(summed(part) for part in self._all()))

    def centred(self) -> Sums:
        """Return the moments of inputs about the means, still as sums."""
        n = self.n.clamp_min(1e-300)[:, None]
        x, e = self.x / n, self.e / n
        return Sums(
            self.n,
            self.x,
            self.e,
            self.xx - self.x[:, :, None] * x[:, None, :],
            self.xe - self.x[:, :, None] * e[:, None, :],
            self.ee,
        )

    def _all(self) -> tuple[Tensor, ...]:
        return self.n, self.x, self.e, self.xx, self.xe, self.ee


@dataclass(frozen=True, eq=False)
class Fit:
    """What the rows that were kept out of it chose.

    Attributes:
        matrix: ``D`` transposed. Shape ``[G, P, R]``.
        shift: What to add: mean residual less ``D`` times the mean input. Shape ``[G, R]``.
        ridge: The factor that won; infinite where nothing helps.
        gain: Fraction of the held-out error that goes.
    """

    matrix: Tensor
    shift: Tensor
    ridge: float
    gain: float


def fit(
    fitted: Sums,
    held: Sums,
    *,
    intercept: bool,
    error: Callable[[Sums, Tensor, Tensor | None], Tensor],
    ridges: Sequence[float] = RIDGES,
) -> Fit:
    """Choose the ridge on held-out rows, then fit on all.

    Args:
        fitted: Sums to fit on.
        held: Sums to choose by.
        intercept: Whether the result may be shifted.
        error: ``(sums, D, shift) -> squared error``, one number.
        ridges: What competes with leaving things alone.
    """
    everything = fitted.with_(held)
    nothing = torch.zeros_like(fitted.xe)
    no_shift = torch.zeros_like(fitted.e)
    base = best = float(error(held, nothing, no_shift))
    winner = torch.inf
    for ridge in ridges:
        found = solved(fitted, ridge, intercept=intercept)
        if found is None:
            continue
        value = float(error(held, *found))
        if value < best * (1 - 1e-9) and value < base * (1 - 1e-6):
            best, winner = value, ridge
    if winner == torch.inf:
        return Fit(nothing, no_shift, torch.inf, 0.0)
    found = solved(everything, winner, intercept=intercept)
    if found is None:
        return Fit(nothing, no_shift, torch.inf, 0.0)
    return Fit(*found, winner, 1 - best / base)


def solved(sums: Sums, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor] | None:
    """Return ``D`` transposed and the shift; ``None`` where the moments are degenerate."""
    moments = sums.centred() if intercept else sums
    diagonal = moments.xx.diagonal(dim1=1, dim2=2)
    scale = diagonal.mean(1).clamp_min(0)
    if not bool((scale > 0).any()):
        return None
    damped = moments.xx + torch.diag_embed(
        (ridge * scale).clamp_min(1e-300)[:, None].expand_as(diagonal)
    )
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool(info.any()):
        return None
    matrix = torch.cholesky_solve(moments.xe, factor)
    if not bool(matrix.isfinite().all()):
        return None
    shift = torch.zeros_like(sums.e)
    if intercept:
        n = sums.n.clamp_min(1e-300)[:, None]
        shift = (sums.e - (sums.x[:, None] @ matrix)[:, 0]) / n
    return matrix, shift


def squared_error(sums: Sums, matrix: Tensor, shift: Tensor) -> Tensor:
    """Return the summed squared error of all outputs, from sums with squares alone."""
    fitted = (matrix * (sums.xx @ matrix - 2 * sums.xe)).sum()
    mean = (shift * (sums.n[:, None] * shift - 2 * sums.e)).sum()
    cross = 2 * (shift * (sums.x[:, None] @ matrix)[:, 0]).sum()
    return sums.ee.sum() + fitted + mean + cross


def error_through(weight: Tensor) -> Callable[[Sums, Tensor, Tensor], Tensor]:
    """Return the error of what a weight makes of the residuals.

    Args:
        weight: ``[G, O, R, K]``; taps are taken to be independent.
    """
    metric = torch.einsum("gork,gosk->grs", weight, weight)

    def error(sums: Sums, matrix: Tensor, shift: Tensor) -> Tensor:
        # E (e - Dx - s)(e - Dx - s)^T as sums, then its product with the metric.
        xd = sums.xe.mT @ matrix
        left = sums.ee - xd - xd.mT + matrix.mT @ sums.xx @ matrix
        mean = sums.e - (sums.x[:, None] @ matrix)[:, 0]
        outer = mean[:, :, None] * shift[:, None, :]
        left = left - outer - outer.mT
        left = left + sums.n[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return (metric * left).sum()

    return error
