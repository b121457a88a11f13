r"""Ridge regression with weighted rows, block by block, shrunk towards leaving things alone.

With inputs :math:`x`, residuals :math:`e` and weights :math:`w` of rows, the map

.. math:: D = \arg\min_D \sum_n w_n \|e_n - D x_n\|^2 + \lambda \|D\|^2, \qquad
          \lambda = \rho \, \overline{\mathrm{diag}} \textstyle\sum_n w_n x_n x_n^T

is found for several :math:`\rho`; the one that serves rows best that had no part in it wins, and
:math:`D = 0`, an infinite :math:`\rho`, competes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from taskprune.importance.distributed import summed

RIDGES = (1e-9, 1e-4, 1e-3, 1e-2, 1e-1)
"""Relative to the mean square of the inputs; the first for what is linear in others exactly."""
TINY = 1e-300
LEAST_GAIN = 1e-6
"""Part of the held-out error that has to go, or things are left alone."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Weighted second moments of inputs and residuals.

    Attributes:
        n: Sum of weights. Shape ``[G]``.
        x, e: Weighted sums. Shapes ``[G, P]``, ``[G, R]``.
        xx, xe, ee: Weighted products: ``[G, P, P]``, ``[G, P, R]``, ``[G, R, R]`` or, where only
            the squares are kept, ``[G, R]``.
    """

    n: Tensor
    x: Tensor
    e: Tensor
    xx: Tensor
    xe: Tensor
    ee: Tensor

    @classmethod
    def none(cls, like: Tensor, shape: tuple[int, int, int], *, squares: bool) -> Sums:
        """Return the sums of no rows.

        Args:
            like: On the device.
            shape: ``(G, P, R)``.
            squares: Whether residuals have no products.
        """
        g, p, r = shape
        sizes = ((g,), (g, p), (g, r), (g, p, p), (g, p, r), (g, r) if squares else (g, r, r))
        return cls(*(like.new_zeros(size, dtype=torch.float64) for size in sizes))

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
        return cls(*(part.double() for part in (w.sum(1), wx.sum(1), we.sum(1), *products)))

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self._all(), other._all(), strict=True)))

    def without_errors(self) -> Sums:
        """Return the sums without the products of residuals, which a fit does not need."""
        return replace(self, ee=self.e)

    def reduced(self) -> Sums:
        """Return the sums of all processes."""
        return Sums(*(summed(part) for part in self._all()))

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return the products of inputs, and with residuals, about the means; still sums."""
        n = self.n.clamp_min(TINY)[:, None, None]
        return (
            self.xx - self.x[:, :, None] * self.x[:, None, :] / n,
            self.xe - self.x[:, :, None] * self.e[:, None, :] / n,
        )

    def _all(self) -> tuple[Tensor, ...]:
        return self.n, self.x, self.e, self.xx, self.xe, self.ee


Error: TypeAlias = Callable[[Sums, Tensor, Tensor], Tensor]
"""``(sums, D transposed, shift) -> squared error`` of all rows, one number."""


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
    ridge: float = torch.inf
    gain: float = 0.0

    @property
    def is_nothing(self) -> bool:
        """Whether things are left alone."""
        return self.ridge == torch.inf


def chosen_ridge(base: float, left_by: Callable[[float], float | None]) -> tuple[float, float]:
    """Return the ridge that leaves the least held-out error, infinite where none helps, and that.

    Args:
        base: The error where nothing changes.
        left_by: Returns the error that a ridge leaves; ``None`` where it has no solution.
    """
    best, winner = base, torch.inf
    for ridge in RIDGES:
        value = left_by(ridge)
        if value is not None and value < best and value < base * (1 - LEAST_GAIN):
            best, winner = value, ridge
    return winner, best


def fit(fitted: Sums, held: Sums, *, intercept: bool, error: Error) -> Fit:
    """Choose the ridge on held-out rows, then fit on all.

    Args:
        fitted: Sums to fit on.
        held: Sums to choose by.
        intercept: Whether the result may be shifted.
        error: What counts.
    """
    nothing = Fit(torch.zeros_like(fitted.xe), torch.zeros_like(fitted.e))
    base = float(error(held, nothing.matrix, nothing.shift))

    def left_by(ridge: float) -> float | None:
        found = _solved(fitted, ridge, intercept=intercept)
        return None if found is None else float(error(held, *found))

    winner, best = chosen_ridge(base, left_by)
    if winner == torch.inf:
        return nothing
    found = _solved(fitted.without_errors() + held.without_errors(), winner, intercept=intercept)
    return nothing if found is None else Fit(*found, winner, 1 - best / base)


def _solved(sums: Sums, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor] | None:
    """Return ``D`` transposed and the shift; ``None`` where the moments are degenerate."""
    xx, xe = sums.centred() if intercept else (sums.xx, sums.xe)
    scale = xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(0)
    if not bool((scale > 0).any()):
        return None
    damping = (ridge * scale).clamp_min(TINY)[:, None].expand(-1, xx.shape[1])
    factor, failed = torch.linalg.cholesky_ex(xx + torch.diag_embed(damping))
    if bool(failed.any()):
        return None
    matrix = torch.cholesky_solve(xe, factor)
    if not bool(matrix.isfinite().all()):
        return None
    shift = torch.zeros_like(sums.e)
    if intercept:
        shift = (sums.e - _mapped(sums.x, matrix)) / sums.n.clamp_min(TINY)[:, None]
    return matrix, shift


def _mapped(x: Tensor, matrix: Tensor) -> Tensor:
    return (x[:, None] @ matrix)[:, 0]


def squared_error(sums: Sums, matrix: Tensor, shift: Tensor) -> Tensor:
    """Return the squared error of all residuals; needs their squares alone."""
    mapped = (matrix * (sums.xx @ matrix - 2 * sums.xe)).sum()
    shifted = (shift * (sums.n[:, None] * shift - 2 * sums.e)).sum()
    return sums.ee.sum() + mapped + shifted + 2 * (shift * _mapped(sums.x, matrix)).sum()


def error_through(weight: Tensor) -> Error:
    """Return the squared error of what a weight makes of the residuals.

    Args:
        weight: ``[G, O, R, K]``; taps are taken to be independent.
    """
    metric = torch.einsum("gork,gosk->grs", weight, weight)

    def error(sums: Sums, matrix: Tensor, shift: Tensor) -> Tensor:
        # The sum of (e - Dx - s)(e - Dx - s)^T, times the metric, multiplied out.
        total = (metric * sums.ee).sum()
        if matrix.any():
            total = total + (matrix @ metric * (sums.xx @ matrix - 2 * sums.xe)).sum()
        pushed = (metric @ shift[..., None])[..., 0]
        missing = sums.e - _mapped(sums.x, matrix)
        return total + (pushed * (sums.n[:, None] * shift - 2 * missing)).sum()

    return error
