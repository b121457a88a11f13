"""Grouped convolutions that lock channels become equal ones with groups of any widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, NetCase
from zoo import groups as zoo_groups

from taskprune import load_checkpoint, save_checkpoint
from taskprune.coupling import couple
from taskprune.errors import PlanMismatchError
from taskprune.graph import trace
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.replace import ModuleReplacement, UnequalGroupsConv
from taskprune.rewrite import apply_plan, remap_optimizer
from taskprune.testing import random_drop, randomise_

CASES = [
    case
    for case in ZOO
    if case.make.__module__ == zoo_groups.__name__
    and str(case) not in ("GroupsReadElsewhere", "GroupsAlignedWithConcat")
]


def built(case: NetCase) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return randomise_(case.make().double().eval(), seed=0), case.inputs()


def planned(model: nn.Module, inputs: Any, seed: int = 1, ratio: float = 0.4) -> PruningPlan:
    groups = couple(trace(model, inputs))
    return build_plan(groups, random_drop(groups, ratio, seed=seed))


def the_case(name: str) -> NetCase:
    return next(case for case in CASES if str(case) == name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_says_what_it_replaces(case: NetCase) -> None:
    model, inputs = built(case)
    plan = planned(model, inputs)
    [replacement] = plan.replacements
    assert replacement.kind == "unequal_groups_conv"
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert couple(trace(model, inputs)).replacements == plan.replacements


@pytest.mark.parametrize("name", ["Grouped", "Transposed", "GroupsAlignedWithConcat", "Depthwise"])
def test_what_locks_nothing_is_not_replaced(name: str) -> None:
    model, inputs = built(next(case for case in ZOO if str(case) == name))
    assert couple(trace(model, inputs)).replacements == ()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(8, 6, 3, padding="same", groups=2),
        nn.Conv1d(8, 6, 3, padding=2, groups=2, padding_mode="circular"),
        nn.Conv2d(8, 6, (3, 2), (2, 1), (1, 2), dilation=2, groups=2, bias=False),
        nn.Conv3d(8, 12, 2, groups=4),
        nn.ConvTranspose1d(8, 6, 3, 2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose2d(8, 12, 3, (2, 1), groups=4, bias=False),
        nn.ConvTranspose3d(8, 6, 2, 2, groups=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "no batch"])
def test_the_replacement_equals_the_original_to_the_bit(layer: Any, batched: bool) -> None:
    layer.requires_grad_(True)
    replacement: Any = UnequalGroupsConv.from_torch(layer)
    shape = (8, 7, 6, 5)[: layer.weight.dim() - 1]
    x = torch.randn((2, *shape) if batched else shape)
    assert torch.equal(replacement(x), layer(x))
    layer(x).square().sum().backward()
    replacement(x).square().sum().backward()
    for ours, theirs in ((replacement.weights, layer.weight), (replacement.biases, layer.bias)):
        if ours is not None:
            assert torch.equal(torch.cat([part.grad for part in ours]), theirs.grad)
    assert replacement.in_channels == layer.in_channels
    assert replacement.out_channels == layer.out_channels


def test_the_size_of_a_transposed_result_can_be_asked_for() -> None:
    layer = nn.ConvTranspose2d(8, 6, 3, 2, padding=1, groups=2)
    x = torch.randn(2, 8, 5, 5)
    for size in ([9, 10], [2, 6, 10, 9]):
        assert torch.equal(UnequalGroupsConv.from_torch(layer)(x, size), layer(x, size))


def test_hooks_and_attributes_of_the_original_stay() -> None:
    layer: Any = nn.Conv2d(8, 6, 3, groups=2).eval()
    layer.weight.requires_grad_(False)
    layer.note, seen = "mine", []
    layer.register_forward_hook(lambda *_: seen.append(1))
    replacement: Any = UnequalGroupsConv.from_torch(layer)
    replacement(torch.randn(1, 8, 4, 4))
    assert (replacement.note, seen, replacement.training) == ("mine", [1], False)
    assert [p.requires_grad for p in replacement.weights] == [False, False]
    assert [p.requires_grad for p in replacement.biases] == [True, True]


def test_weights_of_the_original_load() -> None:
    layer, other = nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(8, 6, 3, groups=2)
    replacement = UnequalGroupsConv.from_torch(layer)
    nn.Sequential(replacement).load_state_dict(nn.Sequential(other).state_dict())
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(replacement(x), other(x))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pruning_twice_is_one_plan(case: NetCase) -> None:
    model, inputs = built(case)
    first = planned(model, inputs, ratio=0.3)
    once = apply_plan(model, first)
    second = planned(once, inputs, seed=4, ratio=0.3)
    assert second.replacements == ()
    both = compose(first, second)
    assert both.replacements == first.replacements
    twice, at_once = apply_plan(once, second), apply_plan(model, both)
    assert torch.equal(twice(inputs), at_once(inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_checkpoint_needs_only_the_original_class(case: NetCase, tmp_path: Path) -> None:
    model, inputs = built(case)
    plan = planned(model, inputs)
    small = apply_plan(model, plan, example_inputs=inputs)
    save_checkpoint(tmp_path / "small.safetensors", small, plan)
    again = load_checkpoint(tmp_path / "small.safetensors", lambda: case.make().double())
    assert torch.equal(again.eval()(inputs), small(inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_optimizer_state_is_split_along(case: NetCase) -> None:
    model, inputs = built(case)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(inputs).square().mean().backward()
    optimizer.step()
    plan = planned(model, inputs)
    small: Any = apply_plan(model, plan)
    moved = remap_optimizer(optimizer, model, small, plan)
    [replacement] = plan.replacements
    conv, old = small.get_submodule(replacement.path), model.get_submodule(replacement.path)
    keep = {(k.name, k.dim): list(k.keep) for k in plan.tensors}
    state = optimizer.state[old.weight]["exp_avg"].chunk(old.groups)
    for g, (part, weight) in enumerate(zip(state, conv.weights, strict=True)):
        expected = part
        for dim in (0, 1):
            index = keep.get((f"{replacement.path}.weights.{g}", dim), range(part.shape[dim]))
            expected = expected.index_select(dim, torch.tensor(list(index)))
        assert torch.equal(moved.state[weight]["exp_avg"], expected)
    small(inputs).square().mean().backward()
    moved.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_pruned_net_exports(case: NetCase) -> None:
    model, inputs = built(case)
    small = apply_plan(model, planned(model, inputs))
    traced = torch.jit.trace(small, inputs)  # type: ignore[no-untyped-call]
    assert torch.equal(traced(inputs), small(inputs))
    exported = torch.export.export(small, (inputs,)).module()
    torch.testing.assert_close(exported(inputs), small(inputs))


def test_a_model_without_the_convolution_is_refused() -> None:
    model, inputs = built(the_case("GroupedOverConcat"))
    plan = planned(model, inputs)
    assert plan.replacements == (ModuleReplacement("grouped", "unequal_groups_conv"),)
    model.grouped = nn.Conv2d(8, 6, 3, padding=1)
    with pytest.raises(PlanMismatchError, match="grouped convolution"):
        apply_plan(model, plan)


def test_a_rewrite_in_place_is_taken_back_on_failure() -> None:
    model, inputs = built(the_case("GroupedOverConcat"))
    plan, before = planned(model, inputs), model.grouped

    def drifting(net: nn.Module, x: Tensor) -> Any:
        return net(x) + sum(p.numel() for p in net.parameters())

    with pytest.raises(Exception, match="differ"):
        apply_plan(model, plan, example_inputs=inputs, forward=drifting, inplace=True)
    assert model.grouped is before


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_weight_has_memory_of_its_own(case: NetCase, inplace: bool) -> None:
    model, inputs = built(case)
    plan = planned(model, inputs)
    smaller = apply_plan(model, plan, verify=False, inplace=inplace)
    for name, parameter in smaller.named_parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
