from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from taskprune.distillation import FeatureLoss, attention_transfer, cosine, cwd, mse, pkd
from taskprune.distillation.losses.feature_layout import compares_channels
from taskprune.errors import InputError

LOSSES: list[FeatureLoss] = [mse, cosine, attention_transfer, pkd, cwd]


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 20, 3)], ids=["map", "tokens"])
def test_equal_features_have_loss_zero(loss: FeatureLoss, shape: tuple[int, ...]) -> None:
    student, teacher = pair(*shape)
    assert loss(student, student.clone()).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(student, teacher).item() > 0.01


@pytest.mark.parametrize("loss", [mse, attention_transfer, pkd, cwd])
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


def test_cosine_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # two tokens of two channels
    teacher = torch.tensor([[[0.0, 2.0], [3.0, 3.0]]])
    assert cosine(student, teacher).item() == pytest.approx(0.5)


def test_attention_transfer_by_hand() -> None:
    student = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])  # all activity on the left
    teacher = torch.tensor([[[[0.0, 2.0]]]])  # one channel, all on the right
    assert attention_transfer(student, teacher).item() == pytest.approx(2.0)


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


def test_cwd_by_hand() -> None:
    student, teacher = torch.zeros(1, 1, 1, 2), torch.tensor([[[[math.log(3.0), 0.0]]]])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert cwd(student, teacher, temperature=1.0).item() == pytest.approx(divergence)
    hot = cwd(4 * student, 4 * teacher, temperature=4.0)
    assert hot.item() == pytest.approx(16 * divergence)


def test_cwd_ignores_a_constant_added_to_a_channel() -> None:
    student, teacher = pair(2, 3, 4, 5)
    shift = torch.tensor([-4.0, 0.0, 7.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(cwd(student + shift, teacher), cwd(student, teacher))


def test_attention_transfer_ignores_the_number_of_channels() -> None:
    student, teacher = pair(2, 3, 4, 5)
    torch.testing.assert_close(
        attention_transfer(torch.cat([student, student, student], 1), teacher),
        attention_transfer(student, teacher),
    )
    assert not compares_channels(attention_transfer)
    assert not compares_channels(partial(attention_transfer))
    assert compares_channels(pkd)


@pytest.mark.parametrize("loss", [mse, cosine, pkd, cwd])
def test_channel_losses_refuse_features_that_are_not_aligned(loss: FeatureLoss) -> None:
    with pytest.raises(InputError, match=r"\(2, 3, 4, 5\).*\(2, 4, 4, 5\)"):
        loss(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 4, 5))


def test_attention_transfer_refuses_other_positions() -> None:
    with pytest.raises(InputError, match="positions"):
        attention_transfer(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1, 1, 1, 1)])
def test_losses_refuse_other_numbers_of_dims(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Feature losses compare maps"):
        pkd(torch.zeros(shape), torch.zeros(shape))


def test_cwd_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(InputError, match="temperature"):
        cwd(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), temperature=0.0)
