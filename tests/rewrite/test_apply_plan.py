"""Rewriting: what comes out is right, tells the truth, and nothing else is touched."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import small_nets
import torch
from small_nets import ZOO
from torch import nn

from taskprune.coupling import couple
from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import InputError, PlanMismatchError, TraceError, VerificationError
from taskprune.graph import trace
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_and_verify, apply_plan
from taskprune.rewrite.surgery import tensor_shapes
from taskprune.testing import (
    assert_identity_plan,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    masked_model,
    permuted_model,
    random_drop,
    unchanged,
)

CASES = pytest.mark.parametrize("case", ZOO)


def planned(case: str, ratio: float = 0.5) -> tuple[small_nets.HandMade, PruningPlan]:
    made = ZOO[case]()
    return made, build_plan(made.groups, random_drop(made.groups, ratio, seed=3))


@CASES
def test_pruned_equals_the_masked_original(case: str) -> None:
    made, plan = planned(case)
    report = assert_masked_equals_pruned(made.model, plan, made.inputs, groups=made.groups)
    assert report.dtype == "float64"
    assert report.max_relative_error < 1e-12
    assert report.oracle == ("permutation" if case == "crossing" else "masked")


@CASES
def test_pruned_shapes_are_the_planned_ones(case: str) -> None:
    made, plan = planned(case)
    pruned = apply_plan(made.model, plan, example_inputs=made.inputs, groups=made.groups)
    assert tensor_shapes(pruned) == plan.pruned_shapes
    assert type(pruned) is type(made.model)


@CASES
def test_original_is_left_as_it_was(case: str) -> None:
    made, plan = planned(case)
    made.model.train()
    with unchanged(made.model):
        apply_plan(made.model, plan, example_inputs=made.inputs, groups=made.groups)


def memory(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


@CASES
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_copies_share_no_memory_with_the_original(case: str, ratio: float) -> None:
    made, plan = planned(case, ratio)
    copies = [apply_plan(made.model, plan, verify=False), masked_model(made.model, plan)]
    copies += [permuted_model(made.model, made.groups, g.name, seed=0) for g in made.groups]
    for model in copies:
        assert not memory(model) & memory(made.model)


@CASES
def test_training_flags_are_kept(case: str) -> None:
    made, plan = planned(case)
    made.model.train()
    first = next(iter(made.model.children())).eval()
    pruned = apply_plan(made.model, plan, example_inputs=made.inputs, groups=made.groups)
    assert pruned.training
    assert next(iter(pruned.children())).training is first.training is False


@CASES
def test_in_place_equals_the_copy(case: str) -> None:
    made, plan = planned(case)
    wanted = apply_plan(made.model, plan, verify=False)
    parameters = list(made.model.parameters())
    got = apply_plan(made.model, plan, example_inputs=made.inputs, groups=made.groups, inplace=True)
    assert got is made.model
    assert all(p is q for p, q in zip(parameters, got.parameters(), strict=True))
    for (name, a), b in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@CASES
def test_empty_plan_is_the_identity(case: str) -> None:
    made = ZOO[case]()
    assert_identity_plan(made.model, made.groups, made.inputs)


@CASES
def test_permuting_a_group_leaves_outputs_unchanged(case: str) -> None:
    made = ZOO[case]()
    for group in made.groups:
        assert assert_permutation_invariant(made.model, made.groups, group.name, made.inputs) < 1e-9


@CASES
def test_permutation_moves_every_channel(case: str) -> None:
    made = ZOO[case]()
    for group in made.groups:
        moved = permuted_model(made.model, made.groups, group.name, seed=1)
        name = group.members[0].name
        a, b = made.model.state_dict()[name], moved.state_dict()[name]
        along = group.members[0].index.ravel()
        assert not torch.equal(
            a.index_select(group.members[0].dim, torch.from_numpy(along)),
            b.index_select(group.members[0].dim, torch.from_numpy(along)),
        )


@pytest.mark.parametrize("left_out", range(7))
def test_one_missing_member_is_noticed(left_out: int) -> None:
    made = small_nets.conv_net()
    first = made.groups["conv1"]
    members = first.members[:left_out] + first.members[left_out + 1 :]
    wrong = CouplingGroup("conv1", 6, members)
    groups = small_nets.hand_made(made.model, (wrong,), made.inputs).groups
    with pytest.raises(AssertionError, match="outputs where they are"):
        assert_permutation_invariant(made.model, groups, "conv1", made.inputs)
    plan = build_plan(groups, {"conv1": np.array([1, 4])})
    with pytest.raises(VerificationError, match="fails on the example inputs"):
        apply_plan(made.model, plan, example_inputs=made.inputs)


def traced(case: str) -> tuple[small_nets.HandMade, PruningPlan]:
    made = ZOO[case]()
    groups = couple(trace(made.model, made.inputs))
    return made, build_plan(groups, random_drop(groups, 0.5, seed=3))


def test_modules_tell_their_new_sizes() -> None:
    made, plan = traced("conv")
    text = str(apply_plan(made.model, plan, example_inputs=made.inputs))
    assert "Conv2d(3, 3, kernel_size=(3, 3)" in text
    assert "BatchNorm2d(3," in text
    assert "Conv2d(3, 2," in text
    assert "in_features=8, out_features=5" in text
    made, plan = traced("block")
    text = str(apply_plan(made.model, plan, example_inputs=made.inputs))
    assert "GroupNorm(2, 4" in text
    assert "Conv1d(4, 4, kernel_size=(3,), stride=(1,), padding=(1,), groups=4)" in text
    assert "LayerNorm((4,)" in text
    assert "in_features=4, out_features=3" in text


def test_attributes_inside_containers_are_stored() -> None:
    made = small_nets.tied_net()
    plan = build_plan(made.groups, {"left": np.array([0, 2]), "right": np.array([1])})
    pruned = apply_plan(made.model, plan, example_inputs=made.inputs)
    assert pruned.widths == [2, 1]
    assert pruned.sizes == {"parts": (2, 1)}
    assert made.model.widths == [4, 2]
    assert made.model.sizes == {"parts": (4, 2)}


def test_tied_tensors_stay_tied() -> None:
    made, plan = traced("tied")
    pruned = apply_plan(made.model, plan, example_inputs=made.inputs)
    output: Any = pruned.get_submodule("output")
    embedding: Any = pruned.get_submodule("embedding")
    assert output.weight is embedding.weight
    assert output.in_features == embedding.embedding_dim == output.weight.shape[1] < 6


def test_parameters_keep_flags_formats_and_classes() -> None:
    class Marked(nn.Parameter):
        pass

    made = small_nets.conv_net()
    model = made.model
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    model.get_parameter("conv1.weight").requires_grad_(False)
    model.get_submodule("head").weight = Marked(model.get_parameter("head.weight").data)
    plan = build_plan(made.groups, random_drop(made.groups, 0.3, seed=0))
    pruned = apply_plan(model, plan, example_inputs=made.inputs)
    assert isinstance(pruned.get_parameter("head.weight"), Marked)
    assert not pruned.get_parameter("conv1.weight").requires_grad
    assert pruned.get_parameter("conv2.weight").requires_grad
    weight = pruned.get_parameter("conv2.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    made, plan = planned("conv")
    model = copy.deepcopy(made.model).to(dtype)
    pruned, report = apply_and_verify(model, plan, example_inputs=made.inputs.to(dtype))
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert report is not None
    assert report.dtype == "float64"


def test_pruned_model_trains() -> None:
    made, plan = planned("block")
    pruned = apply_plan(made.model, plan, example_inputs=made.inputs)
    pruned(made.inputs)["logits"].square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def test_gradients_are_cut_along_in_place() -> None:
    made, plan = planned("conv")
    made.model(made.inputs).sum().backward()
    full = {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
    apply_plan(made.model, plan, inplace=True, verify=False)
    kept = next(k for k in plan.tensors if k.name == "conv1.weight")
    grad = made.model.get_parameter("conv1.weight").grad
    assert isinstance(grad, torch.Tensor)
    assert torch.equal(grad, full["conv1.weight"][list(kept.keep)])


def test_in_place_failure_rolls_everything_back() -> None:
    made, plan = planned("block")
    made.model(made.inputs)["logits"].sum().backward()

    def failing(model: nn.Module, inputs: Any) -> Any:
        if model.get_parameter("stem.weight").shape[0] == 4:
            raise RuntimeError("sizes disagree")
        return model(inputs)

    refused = pytest.raises(VerificationError, match=r"sizes disagree.*Nothing was changed")
    with unchanged(made.model), refused:
        apply_plan(made.model, plan, example_inputs=made.inputs, forward=failing, inplace=True)
    made.model(made.inputs)["logits"].sum().backward()


def test_wrong_attribute_is_a_mismatch_and_changes_nothing() -> None:
    made, plan = planned("tied")
    del made.model.sizes
    with unchanged(made.model), pytest.raises(PlanMismatchError, match="sizes"):
        apply_plan(made.model, plan, inplace=True, verify=False)


def test_plan_of_another_model_is_refused() -> None:
    _, plan = planned("conv")
    other = ZOO["block"]()
    with pytest.raises(PlanMismatchError, match=r"conv1\.weight"):
        apply_plan(other.model, plan)
    pruned = apply_plan(ZOO["conv"]().model, plan)
    with pytest.raises(PlanMismatchError, match="already pruned"):
        apply_plan(pruned, plan)


def test_models_that_cannot_be_copied_are_named_and_pruned_in_place() -> None:
    made, plan = planned("conv")
    vars(made.model)["lock"] = threading.Lock()
    with pytest.raises(InputError, match="inplace=True"):
        apply_plan(made.model, plan)
    assert tensor_shapes(apply_plan(made.model, plan, inplace=True, verify=False)) == (
        plan.pruned_shapes
    )


def test_wrong_inputs_are_the_callers() -> None:
    made, plan = planned("conv")
    with pytest.raises(TraceError, match="rejects the example inputs"):
        apply_plan(made.model, plan, example_inputs=torch.randn(2, 5, 4, 4))


def test_without_inputs_nothing_is_reported() -> None:
    made, plan = planned("conv")
    assert apply_and_verify(made.model, plan)[1] is None
    assert apply_and_verify(made.model, plan, example_inputs=made.inputs, verify=False)[1] is None


def test_wrong_numbers_are_found() -> None:
    made = small_nets.conv_net()
    group = made.groups["conv2"]
    # The linear layer's columns of another channel: shapes fit, numbers do not.
    wrong = small_nets.member("head.weight", 1, np.roll(group.members[-1].index, 1, axis=0), False)
    groups = small_nets.hand_made(
        made.model,
        (CouplingGroup("conv2", 4, (*group.members[:-1], wrong)),),
        made.inputs,
    ).groups
    plan = build_plan(groups, {"conv2": np.array([0])})
    message = r"the output is off by .*float64, tolerance 1e-09"
    with unchanged(made.model), pytest.raises(VerificationError, match=message):
        apply_plan(made.model, plan, example_inputs=made.inputs, inplace=True)


@pytest.mark.parametrize("case", ["conv", "block", "tied", "choosing"])
def test_masked_model_has_old_shapes_and_new_outputs(case: str) -> None:
    made, plan = planned(case)
    masked = masked_model(made.model.double(), plan)
    assert tensor_shapes(masked) == tensor_shapes(made.model)
    pruned = apply_plan(made.model, plan, verify=False)
    inputs = made.inputs.double() if made.inputs.is_floating_point() else made.inputs
    a, b = masked.eval()(inputs), pruned.eval()(inputs)
    key = {"block": "logits", "choosing": "scores"}.get(case)
    torch.testing.assert_close(a[key] if key else a, b[key] if key else b, rtol=1e-9, atol=1e-12)
