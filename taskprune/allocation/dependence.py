r"""Which columns of what a weight reads say nothing that the others do not.

A channel counts by what is heard of it. With inputs :math:`x`, a weight :math:`W` and outputs
:math:`o`, the part :math:`e_c` of a channel that the others cannot say is nothing if for every
output

.. math:: \|W_{oc}\| \, \mathrm{rms}(e_c)
          \le 10^{-6} \sqrt{\textstyle\sum_k \|W_{ok}\|^2 \, \mathrm{var}(x_k)},

a millionth of what the output varies by, ten times the rounding of single precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Part of what an output varies by that counts as nothing."""

SCREEN = 1e-9
"""Square of what a channel has of its own from which on it certainly has something of its own."""

RIDGE = 1e-12
"""Of products of channels of unit length, so that they can be inverted at all."""

COARSE = 1e-5
"""The same in single precision."""

FAR = 1e-2
"""Square of what a channel has of its own that single precision is certain of."""

TINY = 1e-200

NOISE = 1e-9
"""Coefficients between channels of unit length that are rounding, and 0."""


def loudness(rows: Tensor, weight: Tensor) -> Tensor:
    """Return what a unit of each channel is of the variation of the output that hears it most.

    Args:
        rows: Inputs. Shape ``[n, C]``, float64.
        weight: Shape ``[O, C, K]``, float64.

    Returns:
        Shape ``[C]``.
    """
    squares = weight.square().sum(2)
    power = rows.square().mean(0)
    varied = (rows - rows.mean(0)).square().mean(0)
    # An output that hardly varies is compared with what it adds up to.
    made = torch.maximum(squares @ varied, TOLERANCE**2 * (squares @ power))
    return (squares / made.clamp_min(TINY)[:, None]).amax(0).sqrt()


def maybe_dependent(rows: Tensor, weight: Tensor) -> bool:
    """Return whether any channel may be linear in the others, constants included.

    Args:
        rows: Inputs, more of them than channels. Shape ``[n, C]``, float64.
        weight: Shape ``[O, C, K]``, float64.
    """
    heard = (rows - rows.mean(0)) * loudness(rows, weight)
    power = heard.square().mean(0)
    if bool((power <= SCREEN).any()):
        return True
    unit = heard / (power * len(heard)).sqrt()
    own = _own_part(unit.float(), COARSE)  # nearly always enough, in half of the time
    if own is not None and bool(((own > FAR) & (power > COARSE)).all()):
        return False
    own = _own_part(unit, RIDGE)
    return own is None or bool((own * power <= SCREEN).any())


def _own_part(unit: Tensor, ridge: float) -> Tensor | None:
    """Return the square of what each column has of its own; ``None`` where rounding hides it.

    Args:
        unit: Columns of length 1. Shape ``[n, C]``.
        ridge: What to add to their products.
    """
    products = unit.T @ unit
    products.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(products)
    # What is left of a column without all others is one over its entry of the inverse.
    return None if bool(failed) else 1 / torch.cholesky_inverse(factor).diagonal()


@dataclass(frozen=True, eq=False, slots=True)
class Said:
    """What some channels of a reader say, in terms of others.

    Attributes:
        gone: Numbers of those channels. Shape ``[F]``.
        by: Numbers of the others. Shape ``[S]``.
        matrix: Shape ``[S, F]``, float64.
        constant: What is to be added. Shape ``[F]``, float64.
    """

    gone: Tensor
    by: Tensor
    matrix: Tensor
    constant: Tensor

    def of(self, chosen: Tensor) -> Said:
        """Return what is said of some of the channels that go. Shape of `chosen` ``[F]``, bool."""
        return Said(self.gone[chosen], self.by, self.matrix[:, chosen], self.constant[chosen])


class Inputs:
    """What one block of a reader reads, and which of it the rest can say.

    Args:
        fitted: Rows to find it from. Shape ``[n, C]``, float64.
        held: Rows that it must hold on. Shape ``[m, C]``, float64.
        weight: Shape ``[O, C, K]``, float64.
        numbers: Number of the channel that each column belongs to, -1 for one that stays anyway.
            Shape ``[C]``.
        intercept: Whether what is constant can be added to the outputs.
    """

    def __init__(
        self, fitted: Tensor, held: Tensor, weight: Tensor, numbers: Tensor, *, intercept: bool
    ) -> None:
        self.numbers, self._held = numbers, held
        self._mean = fitted.mean(0) if intercept else torch.zeros_like(fitted[0])
        centred = fitted - self._mean
        self._size = centred.square().mean(0).sqrt()
        loud = loudness(torch.cat([fitted, held]), weight)
        self._loud = loud
        self._heard = self._size * loud
        unit = centred / self._size.where(self._size > 0, 1)
        # With fewer rows anything is linear in anything: then only constants are known.
        self._tells = len(fitted) >= 1.5 * fitted.shape[1]
        self._unit = torch.linalg.qr(unit, mode="r")[1] if self._tells else unit
        self._n = len(fitted)

    def begin(self, waiting: Tensor) -> None:
        """Take off what channels say that are not waiting to go. Shape ``[n_channels]``, bool."""
        going = (self.numbers >= 0) & waiting[self.numbers]
        self.columns = going.nonzero().flatten()
        self._left = self._unit[:, self.columns]
        stay = (~going).nonzero().flatten()
        if self._tells and len(stay) and len(self.columns):
            by = self._unit[:, stay]
            self._left = self._left - by @ _solved(by, self._left)

    def own(self) -> Tensor:
        """Return what each of :attr:`columns` says on its own, as it is heard."""
        return self._left.square().sum(0).div(self._n).sqrt() * self._heard[self.columns]

    def stays(self, number: int) -> None:
        """Take off what a channel says that stays."""
        for column in (self.numbers[self.columns] == number).nonzero().flatten().tolist():
            direction = self._left[:, column]
            length = direction.norm()
            if self._tells and length > 0:
                direction = direction / length
                self._left = self._left - torch.outer(direction, direction @ self._left)

    def said(self, going: Tensor) -> tuple[Said, Tensor]:
        """Return what channels that go say in terms of the rest, and what is missing of each.

        Args:
            going: Shape ``[n_channels]``, bool.
        """
        goes = (self.numbers >= 0) & going[self.numbers]
        gone, by = goes.nonzero().flatten(), (~goes).nonzero().flatten()
        matrix = self._unit.new_zeros(len(by), len(gone))
        silent = self._heard[gone] <= TOLERANCE
        if self._tells and len(by) and not bool(silent.all()):
            found = _solved(self._unit[:, by], self._unit[:, gone])
            matrix = found.where(found.abs() > NOISE, 0).where(~silent, 0)
        matrix = matrix * self._size[gone] / self._size[by].where(self._size[by] > 0, 1)[:, None]
        constant = self._mean[gone] - self._mean[by] @ matrix
        left = self._held[:, gone] - self._held[:, by] @ matrix - constant
        missing = left.square().mean(0).sqrt() * self._loud[gone]
        return Said(gone, by, matrix, constant), missing.nan_to_num(torch.inf, torch.inf)


def _solved(by: Tensor, wanted: Tensor) -> Tensor:
    # Channels that stay may be alike: of all solutions the one that leaves out some of them.
    found: Tensor = torch.linalg.lstsq(by, wanted, rcond=1e-7, driver="gelsy").solution
    return found
