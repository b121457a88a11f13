"""A model that is pruned while it trains goes on in the hands of whoever holds it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import taskprune
from taskprune.errors import InputError, PlanMismatchError
from taskprune.rewrite import carry_over, remap_optimizer


class Attentive(nn.Module):
    """Its attention is replaced when it shrinks, so that parameters are other objects."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.hidden = nn.Linear(16, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.hidden(x).relu())  # type: ignore[no-any-return]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.Flatten(1),
        nn.Linear(128, 3),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (convolutional, (4, 3, 6, 6)),
    "attention": (Attentive, (4, 5, 6)),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward((model(x) - 1).square().mean())
    optimizer.step()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("compensate", [True, False])
def test_training_goes_on_as_with_the_pruned_copy(name: str, compensate: bool) -> None:
    make, shape = NETS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(3):
        step(model, optimizer, x)
        scheduler.step()
    result = taskprune.prune(model, ratio=0.3, data=[x], compensate=compensate)
    other = remap_optimizer(optimizer, model, result.model, result.plan)
    state, held = id(optimizer.state), model
    carry_over(model, result.model, result.plan, optimizers=[optimizer])
    assert held is model
    assert id(optimizer.state) == state
    assert torch.equal(model.eval()(x), result.model.eval()(x))
    for _ in range(2):
        step(model.train(), optimizer, x)
        step(result.model.train(), other, x)
    for own, theirs in zip(model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(own, theirs)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.0025


def test_averages_lose_the_same_entries_and_take_what_compensation_added() -> None:
    torch.manual_seed(0)
    model, x = convolutional(), torch.randn(4, 3, 6, 6)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer, x)
        average.update_parameters(model)
    result = taskprune.prune(model, ratio=0.3, data=[x])
    sliced = taskprune.apply_plan(model, result.plan, verify=False)
    expected = taskprune.apply_plan(average.module, result.plan, verify=False)
    carry_over(model, result.model, result.plan, optimizers=[optimizer], averages=[average.module])
    moved = 0
    for name, found in average.module.named_parameters():
        added = result.model.get_parameter(name) - sliced.get_parameter(name)
        torch.testing.assert_close(found, expected.get_parameter(name) + added)
        moved += bool(added.abs().max() > 0)
    assert moved
    step(model, optimizer, x)
    average.update_parameters(model)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x = convolutional(), torch.randn(4, 3, 6, 6)
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer, x)
    result = taskprune.prune(model, ratio=0.3, data=[x])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    foreign = torch.optim.AdamW(convolutional().parameters())
    with pytest.raises(InputError, match="original lacks"):
        carry_over(model, result.model, result.plan, optimizers=[optimizer, foreign])
    with pytest.raises(PlanMismatchError):
        carry_over(model, result.model, result.plan, averages=[Attentive()])
    with pytest.raises(PlanMismatchError):
        carry_over(model, model, result.plan, optimizers=[optimizer])
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {s["exp_avg"].shape for s in optimizer.state.values()} == {
        p.shape for p in model.parameters()
    }
