"""Channels that leave queries and keys together are made up for in the queries' projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from nets_of_readers import made, sequences
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune import Task, apply_plan
from taskprune.calling.forward import call_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.compensation import CompensationSettings, compensate, least_squares
from taskprune.compensation.attention_widths import Fold
from taskprune.compensation.harm import Harm
from taskprune.compensation.side_by_side import SideBySide
from taskprune.coupling import couple
from taskprune.coupling.partition import prefer_inner
from taskprune.graph import trace
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite.masking import masked_copy


class Separate(nn.Module):
    """A projection each, fused attention."""

    heads, key_heads = 2, 2

    def __init__(self) -> None:
        super().__init__()
        width = 6 * self.key_heads
        self.embed, self.q, self.k = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, width)
        self.v, self.out, self.head = nn.Linear(12, width), nn.Linear(12, 12), nn.Linear(12, 3)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def positioned(self, x: Tensor) -> Tensor:
        return x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.positioned(self.split(self.q(x), self.heads))
        k = self.positioned(self.split(self.k(x), self.key_heads))
        y = self.attend(q, k, self.split(self.v(x), self.key_heads))
        made: Tensor = self.head(x + self.out(y.transpose(1, 2).flatten(2)))
        return made


class Packed(nn.Module):
    """One weight, as timm has it; queries are scaled before they meet keys."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, 12), nn.Linear(12, 36)
        self.norm, self.drop = nn.Identity(), nn.Dropout(0.1)
        self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (self.norm(q) * 0.7) @ self.norm(k).transpose(-2, -1)
        y = self.drop(weights.softmax(dim=-1)) @ v
        made: Tensor = self.head(x + self.out(y.transpose(1, 2).reshape(b, n, -1)))
        return made


class Torch(nn.Module):
    """torch's own layer, which is replaced."""

    need_weights = False

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        made: Tensor = self.head(x + self.attention(x, x, x, need_weights=self.need_weights)[0])
        return made


class TorchWithWeights(Torch):
    need_weights = True


class ByLetters(Separate):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhid,bhjd->bhij", q, k) / 2
        return torch.einsum("bhij,bhjd->bhid", weights.softmax(-1), v)


class Flattened(Separate):
    """Heads in the batch, and a mask."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, h, n, _ = q.shape
        q, k, v = (t.reshape(b * h, n, -1).contiguous() for t in (q, k, v))
        weights = torch.bmm(q, k.transpose(1, 2)).view(b, h, n, n)
        weights = weights.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
        return torch.bmm(weights.softmax(-1).view(b * h, n, n), v).view(b, h, n, -1)


class Linear(Separate):
    """No softmax: what keys have in common matters."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q @ k.mT @ v / 11


class Convolved(nn.Module):
    """Projections are convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.q, self.k, self.v = (nn.Conv1d(12, 12, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).mT
        q, k, v = (layer(x).unflatten(1, (2, -1)) for layer in (self.q, self.k, self.v))
        y = v @ (q.mT @ k).softmax(-1).mT
        made: Tensor = self.head((x + y.flatten(1, 2)).mT)
        return made


class Grouped(Separate):
    """Two query heads share a key head."""

    heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(12, 24), nn.Linear(24, 12)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=0.7, enable_gqa=True)


class Added(Separate):
    """Something is added to queries and keys."""

    def positioned(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.arange(x.shape[2], dtype=x.dtype)[:, None]


class Normed(Separate):
    """Queries and keys of length one."""

    def positioned(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Biased(Separate):
    """Queries say something without keys as well."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        more = q.square().mean(-1, keepdim=True)
        return F.scaled_dot_product_attention(q, k, v, scale=0.7) * more


FOLDED = [Separate, Packed, Torch, TorchWithWeights, ByLetters, Flattened, Linear, Convolved,
          Grouped]  # fmt: skip
LEFT = [Added, Normed, Biased]


def queries_of(model: nn.Module) -> str:
    names = ("q.weight", "qkv.weight", "attention.q_proj.weight")
    return next(n for n in names if n in dict(model.named_parameters()) or "attention" in n)


def narrowed(model: nn.Module, example: Tensor, *, all_groups: bool = False) -> PruningPlan:
    """Plan to drop a third of the inner width of queries and keys, or of everything."""
    groups = couple(
        trace(model, example, forward=call_inputs),
        factor_policy=prefer_inner,
    )
    name = queries_of(model)
    drop = {
        group.name: np.arange(group.n_channels // 3)
        for group in groups
        if group.n_channels > 2
        and (all_groups or any(m.name == name and m.produces for m in group.members))
    }
    if name == "qkv.weight" and not all_groups:  # values have a group of their own
        drop = dict(list(drop.items())[:1])
    assert drop
    return build_plan(groups, drop)


def distance(model: nn.Module, teacher: nn.Module, data: list[Tensor]) -> float:
    total = 0.0
    with torch.no_grad():
        for batch in data:
            for wanted, found in zip(
                flatten_outputs(teacher.eval()(batch)).values(),
                flatten_outputs(model.eval()(batch)).values(),
                strict=True,
            ):
                total += float((wanted - found).square().sum())
    return math.sqrt(total)


def same(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.shape == b.shape and float((a - b).abs().max()) <= tolerance for a, b in pairs)


def folded(result: Any) -> dict[str, float]:
    return {r.name: r.folded for r in result.readers if r.folded}


@pytest.mark.parametrize("kind", FOLDED)
def test_outputs_come_closer(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0])
    result = compensate(model, plan, batches)
    assert folded(result).keys() == {queries_of(model)}
    assert folded(result)[queries_of(model)] > 0.2
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    assert distance(result.model, model, batches) < 0.8 * sliced
    other = [batch.roll(1, 2) for batch in sequences()]
    unseen = distance(apply_plan(model, plan, verify=False), model, other)
    assert distance(result.model, model, other) < unseen


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("all_groups", [False, True])
def test_removed_equals_masked_in_the_compensated_original(
    kind: Callable[[], nn.Module], all_groups: bool
) -> None:
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0], all_groups=all_groups)
    result = compensate(model, plan, batches)
    original = result.original(model, plan)
    assert folded(result)
    assert same(result.model, apply_plan(original, plan, verify=False))
    assert distance(result.model, masked_copy(original, plan), batches) < 1e-11


def plant(model: nn.Module, plan: PruningPlan) -> None:
    """Make what a plan removes of each head linear in what stays of it, in no two heads alike."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for kept in (k for k in plan.tensors if k.dim == 0):
            name = kept.name
            first = 0
            if name not in parameters:  # of the replaced layer
                kind_of = name.rsplit(".", 1)[1]
                first = 12 * ("q_proj" in name, "k_proj" in name, "v_proj" in name).index(True)
                name = f"attention.in_proj_{kind_of}"
            tensor = parameters[name]
            n = kept.size // (3 if "qkv" in name else 1)
            width = 6
            stays = set(kept.keep)
            draw = torch.Generator().manual_seed(n)
            for head in range(kept.size // width):
                rows = range(head * width, (head + 1) * width)
                keep = [first + row for row in rows if row in stays]
                gone = [first + row for row in rows if row not in stays]
                if gone:
                    mix = torch.randn(len(gone), len(keep), generator=draw, dtype=torch.float64)
                    tensor[gone] = torch.tensordot(mix, tensor[keep], 1)


@pytest.mark.parametrize("kind", FOLDED)
def test_a_planted_dependence_costs_nothing(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0])
    plant(model, plan)
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    assert sliced > 1e-2
    result = compensate(model, plan, batches)
    assert distance(result.model, model, batches) < 1e-5 * sliced


class Several(Separate):
    """Four heads, each of which can go."""

    key_heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.heads = self.key_heads = 4
        self.q, self.out = nn.Linear(12, 24), nn.Linear(24, 12)


@pytest.mark.parametrize("gone", [[0], [1, 2], [3]])
def test_heads_that_stay_are_told_from_those_that_go(gone: list[int]) -> None:
    model, batches = made(Several), sequences()
    plant(model, narrowed(model, batches[0]))
    with torch.no_grad():  # nobody misses the heads that go
        model.get_parameter("out.weight").view(12, 4, 6)[:, gone] = 0
    groups = couple(trace(model, batches[0], forward=call_inputs))
    heads = next(g for g in groups if any(m.name == "q.weight" and m.produces for m in g.members))
    first = build_plan(groups, {heads.name: np.array(gone)})
    plan = compose(first, narrowed(apply_plan(model, first), batches[0]))
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    assert sliced > 1e-2
    result = compensate(model, plan, batches)
    assert distance(result.model, model, batches) < 1e-5 * sliced


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_recognised_stays_as_sliced(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0])
    result = compensate(model, plan, batches)
    assert not folded(result)
    assert same(result.model, apply_plan(model, plan, verify=False))


@pytest.mark.parametrize("kind", [Separate, Packed])
def test_an_infinite_ridge_is_slicing_to_the_bit(
    kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "RIDGES", ())
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0], all_groups=True)
    result = compensate(model, plan, batches)
    assert same(result.model, apply_plan(model, plan, verify=False))


@pytest.mark.parametrize("kind", FOLDED)
def test_twice_is_once(kind: Callable[[], nn.Module]) -> None:
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0], all_groups=True)
    settings = CompensationSettings(cautious=False)
    once = compensate(model, plan, batches, settings=settings)
    if not isinstance(model, Torch):  # the copy has the replaced layer
        again = compensate(once.original(model, plan), plan, batches, settings=settings)
        assert same(once.model, again.model, tolerance=1e-8)


@pytest.mark.parametrize("aware", [True, False])
def test_the_order_of_batches_does_not_matter(aware: bool) -> None:
    model, batches = made(Packed), sequences()
    plan = narrowed(model, batches[0], all_groups=True)
    settings = CompensationSettings(aware=aware)
    tasks = {"size": Task(lambda outputs, batch: (outputs - batch[..., :3]).square().mean())}
    one = compensate(model, plan, batches, tasks=tasks, settings=settings)
    other = compensate(model, plan, batches[::-1], tasks=tasks, settings=settings)
    assert folded(one)
    assert same(one.model, other.model, tolerance=1e-9)


@pytest.mark.parametrize("kind", FOLDED)
def test_queries_in_flight_are_those_of_the_folded_weight(
    kind: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[SideBySide] = []
    real = SideBySide.__init__

    def notice(run: SideBySide, *args: Any) -> None:
        runs.append(run)
        real(run, *args)

    monkeypatch.setattr(SideBySide, "__init__", notice)
    model, batches = made(kind), sequences()
    plan = narrowed(model, batches[0], all_groups=True)
    settings = CompensationSettings(cautious=False)
    result = compensate(model, plan, batches, settings=settings)
    assert folded(result)
    for lane, batch in zip(runs[0].lanes, batches, strict=True):
        with torch.no_grad():
            expected = result.model(batch)
        torch.testing.assert_close(lane.student.outputs, expected, rtol=0, atol=1e-12)


def test_a_fold_is_undone_with_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = made(Separate), sequences()
    plan = narrowed(model, batches[0], all_groups=True)
    changed = compensate(model, plan, batches, settings=CompensationSettings(cautious=False))
    assert "q.weight" in folded(changed)
    students = []
    real = SideBySide.__init__

    def notice(run: SideBySide, teacher: nn.Module, student: nn.Module, *rest: Any) -> None:
        students.append(student)
        real(run, teacher, student, *rest)

    sliced = apply_plan(model, plan, verify=False).get_parameter("q.weight")

    def losses(_harm: Harm, found: Iterable[Any]) -> dict[str, float]:
        """Hate what was made of the queries."""
        list(found)
        return {"output": float((students[-1].get_parameter("q.weight") - sliced).abs().max())}

    monkeypatch.setattr(SideBySide, "__init__", notice)
    monkeypatch.setattr(Harm, "of", losses)
    result = compensate(model, plan, batches)
    assert {r.name for r in result.readers if r.undone} == {"q.weight"}
    assert torch.equal(result.model.get_parameter("q.weight"), sliced)
    original = result.original(model, plan)
    assert same(result.model, apply_plan(original, plan, verify=False))


def test_one_row_of_the_report_for_each_parameter() -> None:
    model, batches = made(Packed), sequences()
    result = compensate(model, narrowed(model, batches[0], all_groups=True), batches)
    names = [report.name for report in result.readers]
    assert len(names) == len(set(names))
    row = next(report for report in result.readers if report.name == "qkv.weight")
    assert row.folded > 0
    assert row.gain > 0


def test_an_exception_in_the_fit_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Fold, "solved", fail)
    model, batches = made(Separate), sequences()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="out of luck"):
        compensate(model, narrowed(model, batches[0]), batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models_stay_narrow(dtype: torch.dtype) -> None:
    model, batches = made(Separate).to(dtype), [batch.to(dtype) for batch in sequences()]
    result = compensate(model, narrowed(model, batches[0]), batches)
    assert folded(result)
    assert all(parameter.dtype == dtype for parameter in result.model.parameters())


@pytest.mark.parametrize("size", [1, 2])
def test_few_images_a_batch_are_enough(size: int) -> None:
    model, batches = made(Separate), [batch[:size] for batch in sequences()]
    plan = narrowed(model, batches[0])
    result = compensate(model, plan, batches)
    sliced = distance(apply_plan(model, plan, verify=False), model, batches)
    assert distance(result.model, model, batches) < 0.9 * sliced
