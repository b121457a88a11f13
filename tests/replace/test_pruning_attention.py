"""Models built on `torch.nn.MultiheadAttention` prune like any other."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attention_nets import NETS, WIDTH, Encoder, SharedAttention, TextBlock, build, draw, layer
from torch import Tensor, nn

import taskprune
from taskprune import PruningPlan, apply_plan, couple, load_checkpoint, save_checkpoint, trace
from taskprune.calling.forward import call_inputs
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.partition import prefer_inner
from taskprune.errors import InputError, PlanMismatchError, VerificationError
from taskprune.graph import ModelGraph
from taskprune.plan.composition import compose
from taskprune.plan.plan import build_plan
from taskprune.replace import (
    ModuleReplacement,
    PrunableMultiheadAttention,
    find_replacements,
    replace_modules,
    replaced_modules,
)
from taskprune.rewrite import remap_optimizer
from taskprune.testing import (
    assert_cost_is_exact,
    assert_identity_plan,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    random_drop,
)


def replaced(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    replace_modules(copied, find_replacements(copied))
    return copied


def planned(model: nn.Module, inputs: Any, ratio: float = 0.4, seed: int = 0) -> PruningPlan:
    groups = couple(trace(model, inputs))
    return build_plan(groups, random_drop(groups, ratio, seed=seed))


def attention_groups(groups: CouplingGroups) -> list[str]:
    projections = ("q_proj", "k_proj", "v_proj")
    return [g.name for g in groups if g.name.rsplit(".", 1)[-1] in projections]


def assert_same_outputs(first: nn.Module, second: nn.Module, inputs: Any) -> None:
    torch.testing.assert_close(
        call_inputs(second, inputs), call_inputs(first, inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", NETS)
def test_replacing_leaves_the_outputs_where_they_were(name: str) -> None:
    model, inputs = build(name)
    other = replaced(model)
    assert any(isinstance(m, PrunableMultiheadAttention) for m in other.modules())
    assert not any(isinstance(m, nn.MultiheadAttention) for m in other.modules())
    assert_same_outputs(model, other, inputs)
    with torch.no_grad():  # the original now takes its fused path
        assert_same_outputs(model, other, inputs)
    results = []
    for net in (model, other):
        torch.manual_seed(0)
        results.append(call_inputs(net.train(), inputs))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_attention_prunes_and_equals_the_masked_original(name: str) -> None:
    model, inputs = build(name)
    groups = couple(trace(model, inputs))
    found = attention_groups(groups)
    assert found, [f"{f.name}: {f.reasons}" for f in groups.frozen]
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    report = assert_masked_equals_pruned(model, plan, inputs, groups=groups)
    assert report.oracle == "masked"
    assert_identity_plan(model, groups, inputs)
    assert_cost_is_exact(model, groups, plan, inputs)
    for group in groups:
        assert_permutation_invariant(model, groups, group.name, inputs)


@pytest.mark.parametrize("name", ["post-norm encoder", "vit", "translator"])
def test_head_widths_prune_where_they_are_preferred(name: str) -> None:
    model, inputs = build(name)
    groups = couple(trace(model, inputs), factor_policy=prefer_inner)
    found = attention_groups(groups)
    assert {groups[g].n_channels for g in found} == {WIDTH // 4}
    plan = build_plan(groups, random_drop(groups, 0.4, seed=1))
    assert_masked_equals_pruned(model, plan, inputs, groups=groups)
    small: Any = apply_plan(model, plan)
    attention = next(m for m in small.modules() if isinstance(m, PrunableMultiheadAttention))
    assert (attention.num_heads, attention.head_dim) == (4, 2)
    assert attention.scale == 0.5


def test_whole_heads_go_by_default() -> None:
    model, inputs = build("post-norm encoder")
    groups = couple(trace(model, inputs))
    plan = build_plan(groups, {"encoder.self_attn.q_proj": np.array([1, 2])})
    whole: Any = apply_plan(model, plan)
    small = whole.encoder.self_attn
    assert (small.num_heads, small.head_dim) == (2, 4)
    packed = model.encoder.self_attn.in_proj_weight
    kept = [*range(4), *range(12, 16)]
    assert torch.equal(small.v_proj.weight, packed[2 * WIDTH :][kept])


def test_the_model_is_left_alone_by_every_stage() -> None:
    model, inputs = build("encoder stack")
    before = copy.deepcopy(model.state_dict())
    modules = [(path, id(module)) for path, module in model.named_modules()]
    task = taskprune.Task(loss=lambda outputs, _: outputs.square().mean())
    taskprune.prune(model, {"only": task}, 0.3, data=[inputs])
    assert [(path, id(module)) for path, module in model.named_modules()] == modules
    assert model.encoder.use_nested_tensor
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_front_door_equals_the_stages() -> None:
    model, inputs = build("vit")
    tasks = {"only": taskprune.Task(loss=lambda outputs, _: outputs.square().mean())}
    result = taskprune.prune(model, tasks, 0.3, data=[inputs])
    groups = couple(trace(model, inputs))
    scores = taskprune.score(model, groups, tasks, [inputs])
    plan = taskprune.solve(groups, scores, taskprune.Budget.from_ratio(0.3))
    assert plan.drop == result.plan.drop
    assert any(name in plan.drop for name in attention_groups(groups))
    compensated = taskprune.compensate(model, plan, [inputs], tasks=tasks)
    assert_same_outputs(result.model, compensated.model, inputs)
    sliced = taskprune.prune(model, tasks, 0.3, data=[inputs], compensate=False)
    assert_same_outputs(sliced.model, apply_plan(model, plan), inputs)


def test_the_plan_says_what_it_replaces_also_in_its_file() -> None:
    model, inputs = build("shared attention")
    plan = planned(model, inputs)
    assert plan.replacements == (ModuleReplacement("first", "multihead_attention"),)
    assert PruningPlan.from_json(plan.to_json()) == plan
    small: Any = apply_plan(model, plan)
    assert small.first is small.blocks[0]


def test_a_rewrite_in_place_is_taken_back_on_failure() -> None:
    model, inputs = build("encoder stack")
    plan = planned(model, inputs)
    modules = [(path, id(module)) for path, module in model.named_modules()]

    def drifting(net: nn.Module, x: Tensor) -> Any:
        return net(x) + sum(p.numel() for p in net.parameters())

    with pytest.raises(VerificationError):
        apply_plan(model, plan, example_inputs=inputs, forward=drifting, inplace=True)
    assert [(path, id(module)) for path, module in model.named_modules()] == modules
    assert model.encoder.use_nested_tensor
    same = apply_plan(model, plan, example_inputs=inputs, inplace=True)
    assert same is model
    assert isinstance(model.get_submodule("encoder.layers.1.self_attn"), PrunableMultiheadAttention)


def test_pruning_twice_is_one_plan() -> None:
    model, inputs = build("text block")
    first = planned(model, inputs, 0.3)
    once: Any = apply_plan(model, first)
    second = planned(once, inputs, 0.3, seed=4)
    assert second.replacements == ()
    both = compose(first, second)
    assert both.replacements == first.replacements
    assert_same_outputs(apply_plan(once, second), apply_plan(model, both), inputs)


def test_a_plan_also_fits_a_model_that_is_replaced_already() -> None:
    model, inputs = build("vit")
    plan = planned(model, inputs)
    assert_same_outputs(apply_plan(model, plan), apply_plan(replaced(model), plan), inputs)


def test_a_model_without_the_attention_is_refused() -> None:
    model, inputs = build("text block")
    plan = planned(model, inputs)
    other = TextBlock().double()
    other.attn = Special(WIDTH, 4)
    with pytest.raises(PlanMismatchError, match="attn"):
        apply_plan(other, plan)
    with pytest.raises(PlanMismatchError, match="nothing there"):
        apply_plan(nn.Linear(2, 2), plan)
    with (
        pytest.raises(PlanMismatchError, match="does not know"),
        replaced_modules(model, [ModuleReplacement("attn", "another")]),
    ):
        pass


CHILD = """
import sys, torch
from attention_nets import TextBlock, draw
from taskprune import load_checkpoint
model = load_checkpoint(sys.argv[1], lambda: TextBlock().double()).eval()
torch.save(model(draw(6, 2, 5)), sys.argv[2])
"""


def test_a_checkpoint_needs_only_the_original_class(tmp_path: Path) -> None:
    model, inputs = build("text block")
    plan = planned(model, inputs)
    small: Any = apply_plan(model, plan, example_inputs=inputs)
    save_checkpoint(tmp_path / "small.safetensors", small, plan)
    here = Path(__file__).parent
    root = here.parents[1]
    path = os.pathsep.join(map(str, [here, here.parent, root, root / "benchmarks"]))
    subprocess.run(
        [sys.executable, "-c", CHILD, "small.safetensors", "out.pt"],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert torch.equal(torch.load(tmp_path / "out.pt"), small(inputs))
    again = load_checkpoint(tmp_path / "small.safetensors", model)
    assert torch.equal(again(inputs), small(inputs))
    assert isinstance(model.attn, nn.MultiheadAttention)


def test_optimizer_state_is_split_along() -> None:
    model, inputs = build("text block")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(inputs).square().mean().backward()
    optimizer.step()
    plan = planned(model, inputs)
    small: Any = apply_plan(model, plan)
    moved = remap_optimizer(optimizer, model, small, plan)
    state = optimizer.state[model.attn.in_proj_weight]["exp_avg"]
    keep = {(k.name, k.dim): list(k.keep) for k in plan.tensors}
    rows, columns = keep["attn.k_proj.weight", 0], keep["attn.k_proj.weight", 1]
    expected = state[WIDTH : 2 * WIDTH][rows][:, columns]
    assert torch.equal(moved.state[small.attn.k_proj.weight]["exp_avg"], expected)
    held = [id(p) for group in moved.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in small.parameters())
    small(inputs).square().mean().backward()
    moved.step()


def test_optimizer_of_a_model_replaced_in_place_is_refused() -> None:
    model, inputs = build("text block")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    plan = planned(model, inputs)
    apply_plan(model, plan, inplace=True)
    with pytest.raises(InputError, match="in place"):
        remap_optimizer(optimizer, model, model, plan)


@pytest.mark.parametrize("stack", [False, True], ids=["layer", "stack"])
def test_padded_inputs_run_in_every_mode(stack: bool) -> None:
    encoder = nn.TransformerEncoder(layer(), 2) if stack else layer()
    model = Encoder(encoder).double().eval()
    x, padding = draw(2, 6, 5), torch.arange(6) >= torch.tensor([[6], [4]])
    other = replaced(model)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = model(x, src_key_padding_mask=padding)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            found = other(x, src_key_padding_mask=padding)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    call = {"x": x, "src_key_padding_mask": padding}
    assert_masked_equals_pruned(model, planned(model, call), call)


class Reader(nn.Module):
    """Hands packed weights to the functional form itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.up, self.head = (
            nn.MultiheadAttention(8, 2),
            nn.Linear(8, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Any:
        x = nn.functional.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias)[..., :8]
        return self.head(self.up(x).relu())


class Special(nn.MultiheadAttention):
    """May compute anything."""


def graph_of(model: nn.Module) -> ModelGraph:
    return trace(model, draw(2, 6, 8).float())


def test_code_that_reads_packed_weights_keeps_them() -> None:
    model = Reader()
    graph = graph_of(model)
    assert graph.replacements == ()
    assert any("could be replaced" in note for note in graph.notes)
    assert "up" in couple(graph)


def test_a_subclass_stays() -> None:
    assert find_replacements(nn.Sequential(Special(8, 2))) == ()


def test_hooks_ties_and_a_bare_module_keep_the_original() -> None:
    hooked = nn.Sequential(nn.MultiheadAttention(8, 2))
    hooked[0].register_forward_hook(lambda *_: None)
    assert find_replacements(hooked) == ()
    tied = nn.ModuleList([nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)])
    tied[1].in_proj_weight = tied[0].in_proj_weight
    assert find_replacements(tied) == ()
    assert find_replacements(nn.MultiheadAttention(8, 2)) == ()


def test_notes_on_the_module_go_along_but_patches_keep_the_original() -> None:
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    vars(model[0])["is_initialized"] = True
    assert vars(replaced(model).get_submodule("0"))["is_initialized"] is True
    vars(model[0])["forward"] = lambda *_: None
    assert find_replacements(model) == ()


def test_attention_can_be_protected_by_its_own_type_and_path() -> None:
    model = SharedAttention().double()
    graph = trace(model, draw(2, 6, 5))
    for entry in (nn.MultiheadAttention, "first"):
        assert attention_groups(couple(graph)) != []
        assert attention_groups(couple(graph, protect=[entry])) == []


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("name", NETS)
def test_every_weight_has_memory_of_its_own(name: str, ratio: float, inplace: bool) -> None:
    model, inputs = build(name)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    plan = planned(model, inputs, ratio)
    before = memory_of(model)
    smaller = apply_plan(model, plan, verify=False, inplace=inplace)
    for parameter in smaller.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        if inplace:
            assert parameter.grad is not None
            assert parameter.grad.untyped_storage().nbytes() == parameter.nbytes
    if not inplace:
        assert not memory_of(smaller) & before
    assert len(memory_of(smaller)) == len([*smaller.parameters(), *smaller.buffers()])


def memory_of(model: nn.Module) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
