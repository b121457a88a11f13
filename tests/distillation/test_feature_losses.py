from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from taskprune.distillation import FeatureLoss, mse, pkd
from taskprune.errors import InputError

LOSSES: list[FeatureLoss] = [mse, pkd]


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 20, 3)], ids=["map", "tokens"])
def test_equal_features_have_loss_zero(loss: FeatureLoss, shape: tuple[int, ...]) -> None:
    student, teacher = pair(*shape)
    assert loss(student, student.clone()).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(student, teacher).item() > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_features_have_loss_exactly_zero(loss: FeatureLoss) -> None:
    student, _ = pair(2, 3, 4, 5)
    assert loss(student, student.clone()).item() == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_maps_and_their_tokens_have_the_same_loss(loss: FeatureLoss) -> None:
    student, teacher = pair(2, 3, 4, 5)
    as_tokens = loss(student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2))
    torch.testing.assert_close(loss(student, teacher), as_tokens)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss: FeatureLoss) -> None:
    student, teacher = (500 * x for x in pair(2, 3, 16, 16))
    value = loss(student.half(), teacher.half())
    assert value.dtype == torch.float32
    assert math.isfinite(value.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss: FeatureLoss) -> None:
    student, teacher = (x.double() for x in pair(2, 3, 2, 2))
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student.requires_grad_())


def test_mse_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 2.0]]]])
    assert mse(student, teacher).item() == pytest.approx(2.0)


def test_pkd_is_one_minus_pearson_correlation() -> None:
    student, teacher = pair(2, 3, 4, 5)
    correlations = [
        torch.corrcoef(torch.stack([student[:, c].flatten(), teacher[:, c].flatten()]))[0, 1]
        for c in range(3)
    ]
    expected = 1.0 - torch.stack(correlations).mean()
    torch.testing.assert_close(pkd(student, teacher), expected, atol=1e-5, rtol=1e-5)


def test_pkd_ignores_scale_and_shift_of_each_channel() -> None:
    student, teacher = pair(2, 3, 4, 5)
    scale = torch.tensor([0.5, 3.0, 20.0]).reshape(1, 3, 1, 1)
    shift = torch.tensor([-4.0, 0.0, 7.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(
        pkd(scale * student + shift, teacher), pkd(student, teacher), atol=2e-4, rtol=0
    )
    torch.testing.assert_close(pkd(1e-4 * student, 1e4 * teacher), pkd(student, teacher))


def test_pkd_of_dead_channels_stays_bounded() -> None:
    student, teacher = pair(2, 3, 4, 5)
    student[:, 1] = 0.0
    student.requires_grad_()
    value = pkd(student, teacher)
    value.backward()  # type: ignore[no-untyped-call]
    assert 0.0 <= value.item() <= 2.0
    assert student.grad is not None
    assert student.grad.abs().max().item() < 1e3
    assert pkd(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).item() == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_channel_losses_refuse_features_that_are_not_aligned(loss: FeatureLoss) -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\).*\(2, 4, 4, 5\)"):
        loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 4, 5))


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1, 1, 1, 1)])
def test_losses_refuse_other_numbers_of_dims(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Feature losses compare maps"):
        pkd(torch.zeros(shape), torch.zeros(shape))
