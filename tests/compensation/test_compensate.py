"""Laws of compensation."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from nets_of_readers import (
    SQUARE,
    Chosen,
    Picked,
    Routed,
    ThereAndBack,
    Tokens,
    TwoHeads,
    Widths,
    distance,
    images,
    made,
    sequences,
    tasks,
    third,
)
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune import Task, apply_plan
from taskprune.calling.forward import call_batch, call_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.compensation import CompensationSettings, compensate
from taskprune.compensation import least_squares as least_squares_module
from taskprune.compensation.harm import Harm, runs
from taskprune.compensation.side_by_side import SideBySide
from taskprune.coupling import couple
from taskprune.errors import TraceError
from taskprune.graph import trace
from taskprune.importance.projections import output_tasks
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite.masking import masked_copy
from taskprune.testing import unchanged

NETS: list[tuple[Callable[[], nn.Module], Callable[[], list[Tensor]]]] = [
    (TwoHeads, images),
    (Tokens, sequences),
    (Widths, sequences),
    (Chosen, sequences),
    (Routed, sequences),
    (Picked, sequences),
]


def same(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(
        a == b and x.shape == y.shape and float((x - y).abs().max()) <= tolerance
        for (a, x), (b, y) in pairs
        if x.numel()
    )


@pytest.mark.parametrize(("kind", "data"), NETS)
def test_removed_equals_masked_in_the_compensated_original(
    kind: Callable[[], nn.Module], data: Callable[[], list[Tensor]]
) -> None:
    model, batches = made(kind), data()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches)
    masked = masked_copy(result.original(model, plan), plan)
    assert any(not report.undone for report in result.readers)
    assert distance(result.model, masked, batches) < 1e-12
    assert same(result.model, apply_plan(result.original(model, plan), plan, verify=False))


def test_a_weight_that_is_read_along_two_dims_stays_as_sliced() -> None:
    model, batches = made(ThereAndBack), images()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches)
    undone = {report.name: report.undone for report in result.readers if report.undone}
    assert undone == dict.fromkeys(
        ("code.weight", "up.weight"), "it is read along more dims than one"
    )
    assert any(not report.undone for report in result.readers)
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-12


class Straddled(nn.Module):
    """Groups that run as one call, and begin and end inside of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.grouped, self.out = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(F.relu(self.grouped(torch.cat([self.a(x), self.b(x)], 1))))
        return made


def test_of_groups_that_run_as_one_those_that_lose_nothing_are_known_as_well() -> None:
    model, batches = made(Straddled), images()
    groups = couple(trace(model, batches[0], forward=call_inputs))
    read_by_second = [
        group.name
        for group in groups
        if {("grouped.weights.1", 1)} & {(part.name, part.dim) for part in group.members}
    ]
    plan = build_plan(groups, {name: np.array([0]) for name in read_by_second[-1:]})
    result = compensate(model, plan, batches)
    assert [report.name for report in result.readers if not report.undone]
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-12


class Stacked(nn.Module):
    """Experts as one stack of matrices, weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.out = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.up = nn.Parameter(0.3 * torch.randn(3, 8, 6))
        self.down = nn.Parameter(0.3 * torch.randn(3, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = x.reshape(1, -1, x.shape[2]).expand(self.up.shape[0], -1, -1)
        y = torch.bmm(torch.bmm(flat, self.up).relu(), self.down)
        y = y.view(y.shape[0], *x.shape) * self.gate(x).permute(2, 0, 1)[..., None]
        made: Tensor = self.out(y.sum(0))
        return made


def test_a_stack_of_which_whole_matrices_go_stays_as_sliced() -> None:
    model, batches = made(Stacked), sequences()
    plan = third(model, batches[0])
    assert ("up", 0) in {(kept.name, kept.dim) for kept in plan.tensors}
    result = compensate(model, plan, batches)
    undone = {report.name: report.undone for report in result.readers if report.undone}
    assert undone == dict.fromkeys(("up", "down"), "whole matrices of it go")
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-12


@pytest.mark.parametrize(("kind", "data"), NETS)
def test_outputs_come_closer(
    kind: Callable[[], nn.Module], data: Callable[[], list[Tensor]]
) -> None:
    model, batches = made(kind), data()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches)
    for loss in result.losses.values():
        assert loss.compensated <= loss.sliced
    assert any(loss.compensated < 0.7 * loss.sliced for loss in result.losses.values())


def dependent() -> tuple[nn.Module, PruningPlan]:
    """Return a net whose first channels are sums of others, and the plan that drops them."""
    model = made(TwoHeads)
    assert isinstance(model, TwoHeads)
    plan = third(model, images()[0])
    with torch.no_grad():
        # Behind a ReLU only multiples of one channel are linear in it.
        for module in (model.stem, model.trunk, model.up):
            weight = module.weight.transpose(0, 1) if module is model.up else module.weight
            n_dropped = max(1, int(0.34 * len(weight)))
            for row in range(n_dropped):
                weight[row] = (0.5 + row) * weight[n_dropped + row]
                if module.bias is not None:
                    module.bias[row] = (0.5 + row) * module.bias[n_dropped + row]
        mean, variance = model.norm.running_mean, model.norm.running_var
        assert mean is not None
        assert variance is not None
        for values in (model.norm.weight, variance):
            values[:4] = values[4:8]
        for row in range(4):
            mean[row] = (0.5 + row) * mean[4 + row]
            model.norm.bias[row] = (0.5 + row) * model.norm.bias[4 + row]
    return model, plan


def test_a_planted_dependence_costs_nothing() -> None:
    model, plan = dependent()
    only = {d.name: d.drop for d in plan.groups if d.name in ("stem", "up")}
    assert len(only) == 2
    plan = narrowed(model, only)
    sliced = distance(apply_plan(model, plan, verify=False), model, images())
    found = distance(compensate(model, plan, images()).model, model, images())
    assert sliced > 1e-2
    assert found < 1e-5 * sliced


def narrowed(model: nn.Module, drop: dict[str, tuple[int, ...]]) -> PruningPlan:
    groups = couple(trace(model, images()[0], forward=call_inputs))
    return build_plan(groups, {name: np.array(channels) for name, channels in drop.items()})


@pytest.mark.parametrize(("kind", "data"), NETS)
def test_an_infinite_ridge_is_slicing_to_the_bit(
    kind: Callable[[], nn.Module],
    data: Callable[[], list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(least_squares_module, "RIDGES", ())
    model, batches = made(kind).float(), [batch.float() for batch in data()]
    plan = third(model, batches[0])
    result = compensate(model, plan, batches)
    assert same(result.model, apply_plan(model, plan, verify=False))


def test_no_calibration_loss_rises() -> None:
    model, batches = made(TwoHeads), images()
    plan = third(model, batches[0], share=0.6)
    result = compensate(model, plan, batches, tasks=tasks())
    harm = Harm(tasks(), ())
    sliced = harm.of(runs(apply_plan(model, plan, verify=False).eval(), batches, call_batch))
    found = harm.of(runs(result.model.eval(), batches, call_batch))
    original = harm.of(runs(model.eval(), batches, call_batch))
    for name, loss in result.losses.items():
        assert found[name] == loss.compensated <= loss.sliced == sliced[name]
        assert loss.original == original[name]


class Biased(nn.Module):
    """What is added to what a reader makes is computed, or added to something else as well."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.how = nn.Linear(5, 12), how
        self.one, self.two = (nn.Parameter(0.3 * torch.randn(6, 12)) for _ in range(2))
        self.bias, self.other = (nn.Parameter(n * torch.ones(6)) for n in (9, -7))
        self.kernel = nn.Parameter(0.3 * torch.randn(6, 12, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        if self.how == "computed":
            return F.linear(x, self.one, self.bias * 2)
        if self.how == "of two readers":
            return F.linear(x, self.one, self.bias) * F.linear(x, self.two, self.bias)
        if self.how == "of two calls":
            return F.linear(x, self.one, self.bias) * F.linear(x + 1, self.one, self.other)
        if self.how == "of a convolution":
            return F.conv1d(x.mT, self.kernel, self.bias * 2).mT
        return F.linear(x, self.one, self.bias) * (self.bias + 1)


@pytest.mark.parametrize("how", ["computed", "of two readers", "of two calls", "added elsewhere"])
def test_a_bias_that_is_not_its_own_takes_no_shift(how: str) -> None:
    model, batches = made(lambda: Biased(how)), sequences()
    all_of_it = CompensationSettings(cautious=False)
    result = compensate(model, third(model, batches[0]), batches, settings=all_of_it)
    assert {report.shifted for report in result.readers} == {""}
    assert all(report.ridge is not None for report in result.readers)
    assert result.model.get_parameter("bias").eq(9).all()
    harm = Harm(output_tasks(model, batches[0], forward=call_batch), map(model, batches))
    sliced = apply_plan(model, third(model, batches[0]), verify=False).eval()
    before = harm.of(runs(sliced, batches, call_batch))["output"]
    assert harm.of(runs(result.model, batches, call_batch))["output"] < 0.5 * before


def test_a_convolution_with_a_computed_bias_stays_as_sliced() -> None:
    model, batches = made(lambda: Biased("of a convolution")), sequences()
    result = compensate(model, third(model, batches[0]), batches)
    found = {report.name: report.undone for report in result.readers}
    assert found == {"kernel": "`conv1d` takes it as well"}


class TakenEarly(nn.Module):
    """A view, or a copy, of the weights is made before the call that reads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.how = nn.Linear(5, 12), how
        self.one, self.two = (nn.Parameter(0.3 * torch.randn(n, 12)) for n in (7, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        return (
            x @ self.one.t() if self.how == "view" else F.linear(x, torch.cat([self.one, self.two]))
        )


@pytest.mark.parametrize("how", ["view", "copy"])
def test_losses_are_of_the_new_weights_wherever_a_forward_took_them(how: str) -> None:
    model, batches = made(lambda: TakenEarly(how)), sequences()
    square = {"square": SQUARE}
    result = compensate(model, third(model, batches[0]), batches, tasks=square)
    found = Harm(square, ()).of(runs(result.model, batches, call_batch))
    assert found["square"] == result.losses["square"].compensated < result.losses["square"].sliced


def test_what_a_task_is_worse_off_with_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = made(TwoHeads), images()
    plan = third(model, batches[0])
    all_of_it = CompensationSettings(cautious=False)
    changed = compensate(model, plan, batches, tasks=tasks(), settings=all_of_it)

    students = []
    real = SideBySide.__init__

    def notice(run: SideBySide, teacher: nn.Module, student: nn.Module, *rest: Any) -> None:
        students.append(student)
        real(run, teacher, student, *rest)

    def losses(_harm: Harm, found: Iterable[Any]) -> dict[str, float]:
        """Hate what was made of one reader."""
        list(found)
        student = students[-1]
        kept = next(k for k in plan.tensors if (k.name, k.dim) == ("grouped.weight", 0))
        now = student.get_parameter("grouped.weight")
        sliced = model.get_parameter("grouped.weight")[list(kept.keep)][:, -now.shape[1] :]
        return {"dense": float((now - sliced).abs().max()), "label": 1.0}

    assert "grouped.weight" in changed.weights
    monkeypatch.setattr(SideBySide, "__init__", notice)
    monkeypatch.setattr(Harm, "of", losses)
    result = compensate(model, plan, batches, tasks=tasks())
    assert {r.name: r.undone for r in result.readers if r.undone}.keys() == {"grouped.weight"}
    for name, value in result.weights.items():
        assert torch.equal(value, changed.weights[name]) == (not name.startswith("grouped")), name


def test_twice_is_once() -> None:
    model, batches = made(TwoHeads), images()
    plan = third(model, batches[0])
    once = compensate(model, plan, batches, tasks=tasks())
    twice = compensate(once.original(model, plan), plan, batches, tasks=tasks())
    assert same(once.model, twice.model, tolerance=1e-9)


def test_the_order_of_batches_does_not_matter() -> None:
    model, batches = made(TwoHeads), images()
    plan = third(model, batches[0])
    one = compensate(model, plan, batches, tasks=tasks())
    other = compensate(model, plan, batches[::-1], tasks=tasks())
    assert same(one.model, other.model, tolerance=1e-10)


def test_only_readers_and_what_takes_their_shift_change() -> None:
    model, batches = made(TwoHeads), images()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches, tasks=tasks())
    sliced = apply_plan(model, plan, verify=False).state_dict()
    readers = {report.name for report in result.readers}
    shifted = {report.shifted for report in result.readers}
    for name, value in result.model.state_dict().items():
        if not torch.equal(value, sliced[name]):
            assert name in readers | shifted
            assert name in result.weights
    assert "stem.weight" not in readers


def test_the_model_is_left_as_it_was() -> None:
    model, batches = made(TwoHeads), images()
    assert isinstance(model, TwoHeads)
    model.train()
    model.trunk.eval()
    model.stem.weight.requires_grad_(False)
    plan = third(model, batches[0])
    given = [batch.clone() for batch in batches]
    with unchanged(model):
        result = compensate(model, plan, batches, tasks=tasks())
    assert all(torch.equal(a, b) for a, b in zip(batches, given, strict=True))
    for net in (model, result.model):
        assert net.training
        assert not net.get_submodule("trunk").training
        assert not net.get_parameter("stem.weight").requires_grad
        assert all(p.grad is None for p in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("fails_at", [1, 6, 11, 16])
@pytest.mark.parametrize(
    ("kind", "data", "own"), [(TwoHeads, images, tasks()), (Routed, sequences, {"square": SQUARE})]
)
def test_an_exception_half_way_leaves_everything_as_it_was(
    kind: Callable[[], nn.Module],
    data: Callable[[], list[Tensor]],
    own: dict[str, Task],
    fails_at: int,
) -> None:
    model, batches = made(kind), data()
    plan = third(model, batches[0])
    before = copy.deepcopy(model.state_dict())
    n_calls = 0

    def forward(net: nn.Module, batch: Tensor) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == fails_at:
            raise RuntimeError("out of luck")
        return net(batch)

    with pytest.raises(TraceError, match="out of luck"):
        compensate(model, plan, batches, tasks=own, forward=forward)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not [t for t in threading.enumerate() if t.name == "taskprune-lane"]


def test_rows_behind_a_choice_are_not_taken_for_the_same() -> None:
    model, batches = made(Chosen), sequences()
    result = compensate(model, third(model, batches[0]), batches)
    aware = {report.name: report.aware for report in result.readers}
    assert aware == {"score.weight": True, "inner.weight": False, "out.weight": False}


class SortedGroups(nn.Module):
    """Groups of a convolution that run as one call, behind a choice of positions by value."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv1d(5, 8, 1), nn.Conv1d(6, 2, 1)
        self.one, self.two = (nn.Parameter(0.3 * torch.randn(3, 4, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.mT).relu()
        best = x.sum(1, keepdim=True).topk(4, dim=2).indices
        x = x.gather(2, best.expand(-1, x.shape[1], -1))
        made: Tensor = self.out(F.conv1d(x, torch.cat([self.one, self.two]), groups=2))
        return made


def test_rows_of_groups_that_run_as_one_call_are_told_apart_as_well() -> None:
    model, batches = made(SortedGroups), sequences()
    result = compensate(model, third(model, batches[0]), batches)
    assert "one" in {report.name for report in result.readers}
    assert not any(report.aware for report in result.readers)


def test_wide_readers_are_fitted_from_rows() -> None:
    model, plan = dependent()
    plan = narrowed(model, {d.name: d.drop for d in plan.groups if d.name in ("stem", "up")})
    narrow = CompensationSettings(most_channels=1, most_unknowns=0)
    result = compensate(model, plan, images(), settings=narrow)
    assert distance(result.model, model, images()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_stay_narrow(dtype: torch.dtype) -> None:
    model, batches = made(Tokens).to(dtype), [batch.to(dtype) for batch in sequences()]
    result = compensate(model, third(model, batches[0]), batches)
    assert all(parameter.dtype == dtype for parameter in result.model.parameters())
    assert any(loss.compensated < 0.9 * loss.sliced for loss in result.losses.values())


def test_no_graph_outlives_the_survey() -> None:
    model = made(TwoHeads).float()
    batches = [batch.float() for batch in images()]
    plan = third(model, batches[0])
    alive: list[weakref.ref[Tensor]] = []

    def forward(net: nn.Module, batch: Tensor) -> Any:
        outputs = net(batch)
        alive.extend(weakref.ref(tensor) for tensor in flatten_outputs(outputs).values())
        return outputs

    result = compensate(model, plan, batches, tasks=tasks(), forward=forward)
    gc.collect()
    assert alive
    assert not any(tensor() is not None for tensor in alive)
    del result
