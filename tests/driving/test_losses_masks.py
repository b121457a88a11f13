from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses import drivable_loss, lane_loss
from taskprune.driving.losses.masks import focal_loss, tversky_loss
from taskprune.errors import InputError

LOSSES = {"drivable": drivable_loss, "lane": lane_loss}


def logits_of(*p: float) -> Tensor:
    return torch.tensor([[[math.log(x / (1 - x)) for x in p]]])


def batch_of(mask: Tensor) -> DrivingBatch:
    return DrivingBatch(torch.zeros(len(mask), 3, *mask.shape[1:]), drivable=mask, lane=mask)


MASK = torch.tensor([[[1.0, 0.0]]])
FOCAL = (0.25 * 0.4**2 * -math.log(0.6) + 0.75 * 0.3**2 * -math.log(0.7)) / 2
CROSS_ENTROPY = (-math.log(0.6) - math.log(0.7)) / 2
TVERSKY = 1 - 1.6 / (1.6 + 0.7 * 0.4 + 0.3 * 0.3)


def test_focal_loss_equals_hand_computed_value() -> None:
    assert focal_loss(logits_of(0.6, 0.3), MASK).item() == pytest.approx(FOCAL, rel=1e-5)


def test_tversky_loss_equals_hand_computed_value() -> None:
    assert tversky_loss(logits_of(0.6, 0.3), MASK).item() == pytest.approx(TVERSKY, rel=1e-5)


def test_drivable_loss_is_focal_and_cross_entropy() -> None:
    loss = drivable_loss({"drivable": logits_of(0.6, 0.3)}, batch_of(MASK))
    assert loss is not None
    assert loss.item() == pytest.approx(24 * FOCAL + 8 * CROSS_ENTROPY, rel=1e-5)


def test_lane_loss_is_focal_and_tversky() -> None:
    loss = lane_loss({"lane": logits_of(0.6, 0.3)}, batch_of(MASK))
    assert loss is not None
    assert loss.item() == pytest.approx(24 * FOCAL + 8 * TVERSKY, rel=1e-5)


def test_missing_a_lane_costs_more_than_inventing_one() -> None:
    missed = tversky_loss(torch.full((1, 4, 4), -9.0), torch.ones(1, 4, 4))
    invented = tversky_loss(torch.full((1, 4, 4), 9.0), torch.zeros(1, 4, 4))
    assert missed > invented


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_costs_the_mean_of_its_images(name: str) -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 8, 8), (torch.rand(3, 8, 8) > 0.7).float()
    whole = LOSSES[name]({name: logits}, batch_of(mask))
    parts = [LOSSES[name]({name: logits[i : i + 1]}, batch_of(mask[i : i + 1])) for i in range(3)]
    assert whole is not None
    mean = torch.stack([part for part in parts if part is not None]).mean()
    torch.testing.assert_close(whole, mean)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_logits_and_uniform_masks_stay_finite(
    name: str, fill: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor([-200.0, 200.0], dtype=dtype).repeat(1, 8, 4).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name]({name: logits}, batch_of(torch.full((1, 8, 8), fill)))
    assert loss is not None
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_masks_has_no_loss(name: str) -> None:
    assert LOSSES[name]({name: torch.zeros(1, 8, 8)}, DrivingBatch(torch.zeros(1, 3, 8, 8))) is None


@pytest.mark.parametrize("name", LOSSES)
def test_masks_of_another_size_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="shape of the logits"):
        LOSSES[name]({name: torch.zeros(1, 8, 8)}, batch_of(torch.zeros(1, 4, 4)))
