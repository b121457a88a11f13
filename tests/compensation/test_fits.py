"""Both routes of a reader's fit, products of channels and rows themselves, are one regression."""

from __future__ import annotations

import pytest
import torch

from taskprune.compensation.least_squares import Sums, error_through, fit, squared_error
from taskprune.compensation.wide_readers import fit_rows


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("through", [True, False], ids=["through a weight", "itself"])
def test_rows_and_products_give_one_map(through: bool, intercept: bool) -> None:
    draw = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    x, weights = rows(2, 40, 24), rows(2, 40).square()
    e = x @ rows(2, 24, 7) + 0.1 * rows(2, 40, 7) + 1
    weight = rows(2, 5, 7, 3)
    sums = [
        Sums.of(x[:, part], e[:, part], weights[:, part], squares=not through)
        for part in (slice(30), slice(30, None))
    ]
    error = error_through(weight) if through else squared_error
    by_products = fit(sums[0], sums[1], intercept=intercept, error=error)
    by_rows = fit_rows(
        [(x, e, weights)],
        (2, 24, 7),
        weight,
        through=weight if through else None,
        intercept=intercept,
    )
    assert by_products.ridge == by_rows.ridge < torch.inf
    torch.testing.assert_close(by_products.matrix, by_rows.matrix, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(by_products.shift, by_rows.shift, rtol=1e-7, atol=1e-9)
    assert by_products.gain == pytest.approx(by_rows.gain, rel=1e-7)
