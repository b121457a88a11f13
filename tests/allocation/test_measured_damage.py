"""Scores are corrected by what groups were measured to cost, and the model is given back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune import Budget, Safety, Task
from taskprune.allocation import MeasuredDamage
from taskprune.calling import Forward, call_batch
from taskprune.coupling import couple
from taskprune.coupling.groups import CouplingGroups
from taskprune.graph import trace
from taskprune.importance import ChannelScores, GroupScores, output_tasks, score
from taskprune.plan.plan import PruningPlan
from taskprune.solver import solve
from taskprune.testing import unchanged

WIDTH = 12
FREE = Safety(min_channels=1, protected_quantile=1.0)


class Planted(nn.Module):
    """Two outputs that need ``needed`` and do not read ``idle``; ``twins`` holds pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.needed = nn.Linear(6, WIDTH)
        self.idle = nn.Linear(6, WIDTH)
        self.twins = nn.Linear(6, WIDTH)
        self.first = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(WIDTH, 2) for _ in range(3))
        with torch.no_grad():
            for readers in (self.first, self.second):
                readers.get_parameter("1.weight").zero_()
            for own in self.twins.parameters():
                own[WIDTH // 2 :] = own[: WIDTH // 2]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = [layer(x).relu() for layer in (self.needed, self.idle, self.twins)]
        first = sum(out(h) for out, h in zip(self.first, hidden, strict=True))
        second = sum(out(h) for out, h in zip(self.second, hidden, strict=True))
        return {"first": first, "second": second}


class Case:
    """The net, data that it is nearly right on, and scores that say nothing of groups."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = Planted()
        x = torch.randn(64, 6)
        with torch.no_grad():
            right = self.net(x)
        self.batches = [(x, {n: y + 0.05 * torch.randn_like(y) for n, y in right.items()})]
        self.tasks = {name: Task(_loss(name), outputs=name) for name in right}
        self.groups: CouplingGroups = couple(
            trace(self.net, x, tasks={name: (name,) for name in right})
        )

    def scores(self, **levels: float) -> ChannelScores:
        """Return scores that ascend by channel, a level for each group, 1 by default."""
        own = {}
        for group in self.groups:
            ramp = torch.linspace(1, 2, WIDTH, dtype=torch.float64)
            total = ramp * levels.get(group.name, 1.0)
            own[group.name] = GroupScores(total, total.expand(2, -1))
        return ChannelScores("planted", tuple(self.tasks), own)

    def measured(
        self,
        scores: ChannelScores,
        *,
        tasks: dict[str, Task] | None = None,
        data: Any = None,
        forward: Forward = call_batch,
        mended: bool = True,
        widths: tuple[float, ...] = (0.5, 0.9),
    ) -> ChannelScores:
        return score(
            self.net,
            self.groups,
            self.tasks if tasks is None else tasks,
            self.batches if data is None else data,
            importance=MeasuredDamage(lambda *_: scores, widths=widths, mended=mended),
            forward=forward,
        )

    def solved(self, scores: ChannelScores) -> PruningPlan:
        return solve(self.groups, scores, Budget(params=0.75), safety=FREE)


def _loss(name: str) -> Any:
    return lambda outputs, batch: (outputs[name] - batch[1][name]).square().mean()


@pytest.fixture
def case() -> Case:
    return Case()


def kept(plan: PruningPlan) -> dict[str, int]:
    counts = dict.fromkeys(("needed", "idle", "twins"), WIDTH)
    return counts | {d.name: d.n_kept for d in plan.groups}


@pytest.mark.parametrize("mended", [False, True])
@pytest.mark.parametrize("labels", [False, True])
def test_what_scores_understate_is_spared_and_what_is_free_is_spent(
    case: Case, mended: bool, labels: bool
) -> None:
    misled = case.scores(needed=1e-3, idle=10.0)
    before = kept(case.solved(misled))
    assert before["needed"] < WIDTH / 2
    assert before["idle"] == WIDTH
    tasks = case.tasks if labels else output_tasks(case.net, case.batches[0])
    found = kept(case.solved(case.measured(misled, mended=mended, tasks=tasks)))
    assert found["needed"] == WIDTH
    # Where readers are mended, half of the twins are free as well.
    assert found["idle"] < (2 / 3 if mended else 1 / 2) * WIDTH


def test_what_others_can_say_is_free_only_where_they_will(case: Case) -> None:
    scores = case.scores()
    first_half = slice(0, WIDTH // 2)

    def share(found: ChannelScores) -> float:
        halves = {g: own.total[first_half].sum() for g, own in found.groups.items()}
        return float(halves["twins"] / halves["needed"])

    assert share(case.measured(scores, mended=False)) > 0.05
    assert share(case.measured(scores, mended=True)) < 0.01


def test_the_order_within_groups_stays(case: Case) -> None:
    scores = score(case.net, case.groups, case.tasks, case.batches)
    found = case.measured(scores)
    for group in case.groups:
        before, after = scores[group.name].total, found[group.name].total
        assert bool((after[before.argsort(stable=True)].diff() >= 0).all())
    assert torch.equal(found["idle"].per_task, scores["idle"].per_task)


def test_the_same_arguments_give_the_same_scores(case: Case) -> None:
    one, two = case.measured(case.scores()), case.measured(case.scores())
    for group in case.groups:
        assert torch.equal(one[group.name].total, two[group.name].total)


@pytest.mark.parametrize("widths", [(0.5,), (0.2, 0.5)])
def test_there_is_a_forward_a_group_and_width(case: Case, widths: tuple[float, ...]) -> None:
    calls = []

    def forward(model: nn.Module, batch: Any) -> Any:
        calls.append(batch)
        return model(batch[0])

    case.measured(case.scores(), forward=forward, widths=widths)
    # Beside those: the model as it is, and with everything silenced.
    assert len(calls) == len(widths) * len(case.groups) + 2


def test_tasks_with_loaders_of_their_own_are_measured_each_on_its_own(case: Case) -> None:
    own = dict.fromkeys(case.tasks, case.batches)
    scores = case.scores(needed=1e-3, idle=10.0)
    found = case.measured(scores, data=own)
    together = case.measured(scores)
    for group in case.groups:
        assert torch.allclose(found[group.name].total, together[group.name].total)


@pytest.mark.parametrize("fails_at", [None, 1, 5])
def test_the_model_is_as_it_was_also_after_an_exception(case: Case, fails_at: int | None) -> None:
    net = case.net.train()
    net.idle.requires_grad_(False)
    net.needed.weight.grad = torch.ones_like(net.needed.weight)
    calls = [0]

    def forward(model: nn.Module, batch: Any) -> Any:
        calls[0] += 1
        torch.rand(1)
        vars(model)["touched"] = True
        if calls[0] == fails_at:
            raise RuntimeError("half-way")
        return model(batch[0])

    failure = pytest.raises(taskprune.errors.TraceError, match="half-way")
    with unchanged(net), nullcontext() if fails_at is None else failure:
        case.measured(case.scores(), forward=forward)


def test_prune_takes_it_as_any_criterion(case: Case) -> None:
    def misled(*_: Any) -> ChannelScores:
        return case.scores(needed=1e-3, idle=10.0)

    counts = []
    for importance in (misled, MeasuredDamage(misled)):
        result = taskprune.prune(
            case.net,
            case.tasks,
            0.25,
            data=case.batches,
            importance=importance,
            safety=FREE,
            compensate=False,  # which would find what is free whatever the criterion says
        )
        counts.append(kept(result.plan)["needed"])
    assert counts[0] < WIDTH / 2
    assert counts[1] == WIDTH


def test_criteria_that_return_a_mapping_are_measured_as_well(case: Case) -> None:
    def short(*_: Any) -> dict[str, Tensor]:
        return {group.name: torch.ones(WIDTH) for group in case.groups}

    found = score(case.net, case.groups, case.tasks, case.batches, importance=MeasuredDamage(short))
    assert float(found["needed"].total.sum()) > 10 * float(found["idle"].total.sum())


@pytest.mark.parametrize("bad", [{"widths": ()}, {"widths": (0.5, 0.2)}, {"n_batches": 0}])
def test_what_cannot_be_measured_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(taskprune.errors.InputError, match="Found"):
        MeasuredDamage(**bad)
