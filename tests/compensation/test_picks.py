"""Laws of compensation where matrices are picked out of stacks one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets_of_readers import SQUARE, Picked, Routed, distance, made, sequences, third
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune import apply_plan
from taskprune.allocation import find_free
from taskprune.allocation.silencing import Moments
from taskprune.calling.forward import call_inputs
from taskprune.compensation import CompensationResult, CompensationSettings, compensate
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.rewrite.masking import masked_copy

KINDS = pytest.mark.parametrize("kind", [Routed, Picked])
ALL_OF_IT = CompensationSettings(cautious=False)


def furthest(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def reports(result: CompensationResult) -> dict[str, Any]:
    return {report.name: report for report in result.readers}


@KINDS
def test_each_matrix_is_a_reader_of_its_own(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = third(model, batches[0])
    stacks = {
        kept.name: kept.size for kept in plan.tensors if model.get_parameter(kept.name).ndim > 2
    }
    found = reports(compensate(model, plan, batches, settings=ALL_OF_IT))
    for name in stacks:
        lead = model.get_parameter(name).shape[:-2]
        for block in np.ndindex(*lead):
            report = found.pop(f"{name}[{', '.join(map(str, block))}]")
            if kind is Routed and block == (3,):
                assert report.undone == "nothing reads through it"
            else:
                assert not report.undone
                assert report.aware == (kind is Picked)
                assert report.shifted == (f"up_bias[{block[0]}]" if name == "up" else "")
    assert all(model.get_parameter(name).ndim == 2 for name in found)


@KINDS
def test_twice_is_once(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = third(model, batches[0])
    once = compensate(model, plan, batches, tasks={"square": SQUARE}, settings=ALL_OF_IT)
    again = once.original(model, plan)
    twice = compensate(again, plan, batches, tasks={"square": SQUARE}, settings=ALL_OF_IT)
    assert furthest(once.model, apply_plan(model, plan, verify=False)) > 1e-2
    assert furthest(once.model, twice.model) < 1e-9


@KINDS
def test_the_order_of_batches_does_not_matter(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = third(model, batches[0])
    one = compensate(model, plan, batches, tasks={"square": SQUARE}, settings=ALL_OF_IT)
    other = compensate(model, plan, batches[::-1], tasks={"square": SQUARE}, settings=ALL_OF_IT)
    assert furthest(one.model, other.model) < 1e-9


@KINDS
def test_a_planted_dependence_costs_nothing(kind: Callable[[], nn.Module]) -> None:
    model, batches = (
        made(kind),
        [torch.cat([-0.7 * batch, batch, 0.8 * batch.flip(1)]) for batch in sequences(8)],
    )
    groups = couple(trace(model, batches[0], forward=call_inputs))
    inner = next(g for g in groups if ("up", 1) in {(m.name, m.dim) for m in g.members})
    with torch.no_grad():
        making = {m.name for m in inner.members if m.produces}
        for weight in (model.get_parameter(name) for name in making):
            weight[:, :5] = weight[:, 5:10]
            weight[:, 1:3] *= 2
    plan = build_plan(groups, {inner.name: np.arange(5)})
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    found = distance(compensate(model, plan, batches).model, model, batches)
    assert sliced > 1e-2
    assert found < 1e-5 * sliced


def test_a_matrix_that_no_token_was_sent_to_stays_as_sliced() -> None:
    model, batches = made(Routed), sequences()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches, settings=ALL_OF_IT)
    sliced = apply_plan(model, plan, verify=False)
    for name in ("up", "down", "up_bias"):
        new, old = result.model.get_parameter(name), sliced.get_parameter(name)
        assert torch.equal(new[3], old[3])
        assert any(not torch.equal(a, b) for a, b in zip(new, old, strict=True))
    assert torch.equal(
        result.original(model, plan).get_parameter("up")[3], model.get_parameter("up")[3]
    )


class Otherwise(nn.Module):
    """What is read through a stack in some other way than matrix by matrix.

    Args:
        read: ``(rows, stack, which one, as a mask) -> what it makes``.
    """

    which: Tensor
    mask: Tensor

    def __init__(self, read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.read, self.out = nn.Linear(5, 12), read, nn.Linear(6, 3)
        self.stack = nn.Parameter(0.3 * torch.randn(3, 6, 12))
        self.register_buffer("which", torch.tensor([1]))
        self.register_buffer("mask", torch.tensor([False, True, False]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        made: Tensor = self.out(self.read(x, self.stack, self.which, self.mask))
        return made


OTHERWISE: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], str]] = {
    "several at once": (lambda x, w, i, _: x @ w[i].mT, "__getitem__"),
    "one, as a stack": (lambda x, w, i, _: F.linear(x, w[i][0]), "__getitem__"),
    "a slice": (lambda x, w, *_: F.linear(x, w[1:2].squeeze(0)), "__getitem__"),
    "a mask": (lambda x, w, _, mask: F.linear(x, w[mask][0]), "__getitem__"),
    "gathered": (lambda x, w, i, _: F.linear(x, w.index_select(0, i)[0]), "index_select"),
    "scaled": (lambda x, w, *_: F.linear(x, w[1] * 2), "mul"),
    "also summed": (lambda x, w, *_: F.linear(x, w[1]) + w.sum(0).mean(), "sum"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_what_is_picked_otherwise_stays_as_sliced_and_is_named(how: str) -> None:
    read, function = OTHERWISE[how]
    model, batches = made(lambda: Otherwise(read)), sequences()
    result = compensate(model, third(model, batches[0]), batches)
    found = reports(result)
    assert {name for name in found if name.startswith("stack")} == {"stack"}
    assert function in found["stack"].undone


def test_a_stack_that_is_read_whole_as_well_stays_as_sliced_and_is_never_free() -> None:
    def read(x: Tensor, stack: Tensor, *_: Tensor) -> Tensor:
        return torch.bmm(x[:3], stack.mT).sum(0) + F.linear(x, stack[1])

    model, batches = made(lambda: Otherwise(read)), sequences()
    with torch.no_grad():
        model.get_parameter("embed.weight")[:4] = model.get_parameter("embed.weight")[4:8]
        model.get_parameter("embed.bias")[:4] = model.get_parameter("embed.bias")[4:8]
    found = reports(compensate(model, third(model, batches[0]), batches))
    assert found["stack"].undone == "it is read whole and matrix by matrix"
    groups = couple(trace(model, batches[0], forward=call_inputs))
    assert "embed" not in find_free(model, groups, batches).channels


class SharedBias(nn.Module):
    """Biases that may be another matrix's at another time take no shift, and are not fitted to."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.how = nn.Linear(5, 12), how
        self.stack = nn.Parameter(0.3 * torch.randn(2, 6, 12))
        self.biases = nn.Parameter(9 * torch.ones(2, 6))
        self.bias = nn.Parameter(9 * torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        if self.how == "another's":
            return F.linear(x, self.stack[0], self.biases[1])
        if self.how == "everyone's":
            return F.linear(x, self.stack[0], self.bias)
        if self.how == "computed":
            return F.linear(x, self.stack[0], self.biases[0] * 2)
        return F.linear(x, self.stack[0], self.biases[0]) * F.linear(
            x, self.stack[1], self.biases[0]
        )


@pytest.mark.parametrize("how", ["another's", "everyone's", "computed", "of two"])
def test_a_bias_that_is_not_its_own_takes_no_shift(how: str) -> None:
    model, batches = made(lambda: SharedBias(how)), sequences()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches, settings=ALL_OF_IT)
    report = reports(result)["stack[0]"]
    assert not report.shifted
    assert report.ridge is not None
    assert result.model.get_parameter("biases").eq(9).all()
    assert result.model.get_parameter("bias").eq(9).all()
    assert all(loss.compensated < 0.5 * loss.sliced for loss in result.losses.values())
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    assert distance(result.model, model, batches) < sliced


class ByValue(nn.Module):
    """Which matrix an image's rows go through hangs on values that left the tensors.

    Args:
        number: Makes a Python number, or a tensor, of the choice.
    """

    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.number, self.out = nn.Linear(5, 12), number, nn.Linear(6, 3)
        self.router, self.stack = nn.Linear(12, 2), nn.Parameter(0.3 * torch.randn(2, 6, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        chosen = self.router(x.mean(1)).argmax(-1)
        y = torch.stack(
            [F.linear(own, self.stack[self.number(e)]) for own, e in zip(x, chosen, strict=True)]
        )
        made: Tensor = self.out(y)
        return made


@pytest.mark.parametrize(
    "number",
    [int, Tensor.item, Tensor.tolist, lambda e: e],
    ids=["int", "item", "tolist", "as it is"],
)
def test_where_values_choose_the_matrix_rows_are_not_taken_for_the_same(
    number: Callable[[Tensor], Any],
) -> None:
    model, batches = made(lambda: ByValue(number)), [batch[:1] for batch in sequences()]
    found = reports(compensate(model, third(model, batches[0]), batches, settings=ALL_OF_IT))
    picks = [report for name, report in found.items() if name.startswith("stack")]
    assert any(report.ridge is not None for report in picks)
    assert not any(report.aware for report in picks)
    assert found["router.weight"].aware


class RoutedImages(nn.Module):
    """Each image goes through one kernel of a stack; none through the last, which is called too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Conv1d(5, 12, 1), nn.Conv1d(6, 2, 1)
        self.kernels = nn.Parameter(0.3 * torch.randn(3, 6, 12, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.mT).relu()
        chosen = (x.mean((1, 2)) > 0.45).long()
        y = x.new_zeros(len(x), 6, x.shape[2])
        for expert in range(3):
            image = torch.where(chosen == expert)[0]
            y = y.index_add(0, image, F.conv1d(x[image], self.kernels[expert], padding=1))
        made: Tensor = self.out(y)
        return made


def test_kernels_are_picked_as_well_also_for_no_images() -> None:
    model, batches = made(RoutedImages), sequences()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches, settings=ALL_OF_IT)
    found = reports(result)
    assert not any(found[f"kernels[{n}]"].undone for n in range(3))
    assert found["kernels[0]"].gain > 0.1
    assert found["kernels[2]"].ridge is None
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-12


class Sorted(nn.Module):
    """Tokens sorted by expert, in grouped products; none goes to the last."""

    def __init__(self, *, by_rows: bool) -> None:
        super().__init__()
        self.by_rows = by_rows
        self.embed, self.router, self.out = nn.Linear(5, 12), nn.Linear(12, 4), nn.Linear(12, 3)
        self.router.bias.data = torch.tensor([0.0, 0.0, 0.5, -100])
        up, down = (4, 12, 16), (4, 16, 12)
        self.up = nn.Parameter(0.3 * torch.randn(up if by_rows else (4, 16, 12)))
        self.down = nn.Parameter(0.3 * torch.randn(down if by_rows else (4, 12, 16)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).relu()
        flat = x.flatten(0, 1)
        expert = self.router(flat).argmax(-1)
        order = expert.argsort(stable=True)
        ends = (expert[:, None] == torch.arange(4)).sum(0).cumsum(0).to(torch.int32)
        up, down = (self.up, self.down) if self.by_rows else (self.up.mT, self.down.mT)
        inner = torch._grouped_mm(flat[order], up, offs=ends).relu()
        y = torch._grouped_mm(inner, down, offs=ends)[order.argsort()]
        made: Tensor = self.out(x + y.view_as(x))
        return made


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="no grouped products")
@pytest.mark.parametrize("by_rows", [False, True])
def test_each_matrix_of_a_grouped_product_is_a_reader_of_its_own(by_rows: bool) -> None:
    model = made(lambda: Sorted(by_rows=by_rows)).float()
    batches = [batch.float() for batch in sequences(8)]
    groups = couple(trace(model, batches[0], forward=call_inputs))
    plan = build_plan(groups, {g.name: np.arange(4) for g in groups if g.n_channels > 4})
    result = compensate(model, plan, batches, settings=ALL_OF_IT)
    found = reports(result)
    for stack in ("up", "down"):
        own = [found.pop(f"{stack}[{n}]") for n in range(4)]
        assert not any(report.undone or report.aware for report in own)
        assert any(report.gain > 0.3 for report in own)
        assert own[3].ridge is None
        sliced = apply_plan(model, plan, verify=False).get_parameter(stack)
        assert torch.equal(result.model.get_parameter(stack)[3], sliced[3])
    assert found.keys() == {"router.weight", "out.weight"}
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-5
    twice = compensate(result.original(model, plan), plan, batches, settings=ALL_OF_IT)
    assert furthest(result.model, twice.model) < 1e-4
    assert all(loss.compensated < loss.sliced for loss in result.losses.values())


def test_moments_are_not_taken_of_single_matrices() -> None:
    model, batches = made(Picked), sequences()
    moments = Moments()
    with moments.taken(model, couple(trace(model, batches[0], forward=call_inputs))):
        model(batches[0])
    assert moments.products.keys() == {"gate.weight", "out.weight"}


def test_a_parameter_that_is_called_like_a_part_is_whole() -> None:
    class Bracketed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 12)
            self.stack = nn.Parameter(0.3 * torch.randn(2, 6, 12))
            self.register_parameter("stack[0]", nn.Parameter(0.3 * torch.randn(6, 12)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).relu()
            return F.linear(x, self.stack[0]) + F.linear(x, self.get_parameter("stack[0]"))

    model, batches = made(Bracketed), sequences()
    plan = third(model, batches[0])
    result = compensate(model, plan, batches)
    found = reports(result)
    assert found["stack"].undone
    assert not found["stack[0]"].undone
    masked = masked_copy(result.original(model, plan), plan)
    assert distance(result.model, masked, batches) < 1e-12
