"""An optimizer goes on on the pruned model as if the dropped channels had never been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import HandMade, conv_net, tied_net
from torch import nn

from taskprune.errors import InputError, PlanMismatchError
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan, remap_optimizer
from taskprune.testing import masked_model, random_drop

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}
BY_NAME = pytest.mark.parametrize("name", OPTIMIZERS)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def trained(name: str, made: HandMade) -> tuple[PruningPlan, torch.optim.Optimizer]:
    made.model.eval()
    groups = [
        {"params": [p for n, p in made.model.named_parameters() if "weight" in n], "lr": 0.02},
        {"params": [p for n, p in made.model.named_parameters() if "weight" not in n]},
    ]
    optimizer = OPTIMIZERS[name](groups)
    for _ in range(3):
        step(made.model, optimizer, made.inputs)
    return build_plan(made.groups, random_drop(made.groups, 0.5, seed=4)), optimizer


def sliced(plan: PruningPlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    for kept in plan.tensors:
        if kept.name == name:
            tensor = tensor.index_select(kept.dim, torch.tensor(kept.keep))
    return tensor


@BY_NAME
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
def test_state_is_cut_like_its_parameter(name: str, inplace: bool) -> None:
    made = conv_net()
    plan, optimizer = trained(name, made)
    before = {
        n: {k: v.clone() for k, v in optimizer.state[p].items()}
        for n, p in made.model.named_parameters()
    }
    pruned = apply_plan(made.model, plan, verify=False, inplace=inplace)
    remapped = remap_optimizer(optimizer, made.model, pruned, plan)
    assert type(remapped) is type(optimizer)
    assert remapped.param_groups[0]["lr"] == 0.02
    for n, p in pruned.named_parameters():
        for key, value in before[n].items():
            wanted = value if value.numel() == 1 else sliced(plan, n, value)
            assert torch.equal(remapped.state[p][key], wanted), (n, key)


@BY_NAME
def test_next_step_equals_that_of_the_masked_original(name: str) -> None:
    made = conv_net()
    plan, optimizer = trained(name, made)
    pruned = apply_plan(made.model, plan, verify=False)
    remapped = remap_optimizer(optimizer, made.model, pruned, plan)
    masked = masked_model(made.model, plan)
    # The masked model's optimizer: the same state, on the masked parameters.
    nothing = PruningPlan((), (), (), (), plan.shapes)
    wide = remap_optimizer(optimizer, made.model, masked, nothing)
    step(pruned, remapped, made.inputs)
    step(masked, wide, made.inputs)
    for n, p in pruned.named_parameters():
        wanted = sliced(plan, n, masked.get_parameter(n))
        torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-6)


def test_given_optimizer_stays_as_it_was() -> None:
    made = conv_net()
    plan, optimizer = trained("adam", made)
    before = [id(p) for group in optimizer.param_groups for p in group["params"]]
    shapes = [s["exp_avg"].shape for s in optimizer.state.values()]
    pruned = apply_plan(made.model, plan, verify=False)
    remapped = remap_optimizer(optimizer, made.model, pruned, plan)
    step(pruned, remapped, made.inputs)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == before
    assert [s["exp_avg"].shape for s in optimizer.state.values()] == shapes
    step(made.model, optimizer, made.inputs)


def test_scheduled_optimizer_steps_the_new_parameters() -> None:
    made = conv_net()
    plan, optimizer = trained("sgd", made)
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    pruned = apply_plan(made.model, plan, verify=False)
    remapped = remap_optimizer(optimizer, made.model, pruned, plan)
    old, new = made.model.get_parameter("head.bias").clone(), pruned.get_parameter("head.bias")
    before = new.clone()
    step(pruned, remapped, made.inputs)
    assert torch.equal(made.model.get_parameter("head.bias"), old)
    assert not torch.equal(new, before)


def test_tied_parameters_have_one_state() -> None:
    made = tied_net()
    plan, optimizer = trained("adam", made)
    pruned = apply_plan(made.model, plan, verify=False)
    remapped = remap_optimizer(optimizer, made.model, pruned, plan)
    assert len(remapped.state) == len(optimizer.state) == 3
    step(pruned, remapped, made.inputs)


def test_foreign_parameters_and_plans_are_refused() -> None:
    made, other = conv_net(), conv_net()
    plan, optimizer = trained("sgd", made)
    pruned = apply_plan(made.model, plan, verify=False)
    with pytest.raises(InputError, match="original lacks"):
        remap_optimizer(optimizer, other.model, pruned, plan)
    with pytest.raises(PlanMismatchError, match="result of this plan"):
        remap_optimizer(optimizer, made.model, made.model, plan)


def test_state_that_cannot_be_cut_is_refused() -> None:
    made = conv_net()
    plan, optimizer = trained("sgd", made)
    first = made.model.get_parameter("conv1.weight")
    optimizer.state[first]["row_sums"] = torch.zeros(6, 3)
    pruned = apply_plan(made.model, plan, verify=False)
    with pytest.raises(InputError, match=r"conv1\.weight/row_sums"):
        remap_optimizer(optimizer, made.model, pruned, plan)
