"""Per-task Taylor scores less conflict, against a channel-by-channel oracle, and its laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hand_made import (
    TRUNK,
    batches,
    conflict_of,
    first_loss,
    scaled,
    second_loss,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import InputError, LossError
from taskprune.importance import (
    CosineConflict,
    EffectConflict,
    TaskTaylorImportance,
    TaylorImportance,
    as_they_are,
    by_mean_loss,
    score,
)
from taskprune.importance.aggregation import maximum, mean, total
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety


def masks_of(net: nn.Module, group: CouplingGroup, channel: int) -> dict[str, Tensor]:
    """The entries of one channel, by brute force: a boolean mask for each parameter."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    for member in group.members:
        if member.name in masks:
            for position in member.index[channel].tolist():
                masks[member.name].select(member.dim, position).fill_(True)
    return masks


def effects_one_by_one(net: nn.Module, group: CouplingGroup, task: Task, batch: Any) -> Tensor:
    net.eval().zero_grad()
    loss = task.loss(net(batch[0]), batch)
    assert loss is not None
    torch.autograd.backward(loss)
    effects = []
    for channel in range(group.n_channels):
        masks = masks_of(net, group, channel)
        effects.append(
            sum(
                float((p.detach() * p.grad)[masks[name]].double().sum())
                for name, p in net.named_parameters()
                if p.grad is not None
            )
        )
    net.zero_grad()
    return torch.tensor(effects, dtype=torch.float64)


def test_per_task_scores_equal_the_mean_squared_effect_summed_entry_by_entry() -> None:
    net, tasks, data = two_task_net(), two_tasks(), batches()
    groups = two_task_groups(net)
    found = score(net, groups, tasks, data, importance=TaskTaylorImportance(normalise=as_they_are))
    for group in groups:
        for row, task in enumerate(tasks.values()):
            effects = torch.stack([effects_one_by_one(net, group, task, b) for b in data])
            torch.testing.assert_close(
                found[group.name].per_task[row], effects.square().mean(0), rtol=1e-4, atol=1e-12
            )


def test_conflict_equals_its_formula() -> None:
    net, tasks, data = two_task_net(), two_tasks(), batches()
    groups = two_task_groups(net)
    found = score(net, groups, tasks, data, importance=TaskTaylorImportance(normalise=as_they_are))
    first, second = (
        torch.stack([effects_one_by_one(net, groups[TRUNK], task, b) for b in data])
        for task in tasks.values()
    )
    expected = (-2 * first * second).clamp_min(0).mean(0)
    assert expected.max() > 0
    torch.testing.assert_close(conflict_of(found, TRUNK), expected, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(
        found[TRUNK].total, found[TRUNK].per_task.sum(0) - conflict_of(found, TRUNK)
    )


def test_an_effect_is_the_slope_of_the_loss_as_the_channel_fades() -> None:
    net = two_task_net().double()
    groups = two_task_groups(net)
    batch = batches(1)[0]
    batch = (batch[0].double(), {"first": batch[1]["first"], "second": batch[1]["second"].double()})
    task = Task(second_loss)
    found = score(net, groups, {"second": task}, [batch], importance=TaskTaylorImportance())[
        TRUNK
    ].per_task[0]
    step, channel = 1e-6, 3
    masks = masks_of(net, groups[TRUNK], channel)

    def loss_at(factor: float) -> float:
        faded = two_task_net().double().eval()
        faded.load_state_dict(net.state_dict())
        with torch.no_grad():
            for name, p in faded.named_parameters():
                p[masks[name]] *= factor
            return float(second_loss(faded(batch[0]), batch))

    slope = (loss_at(1 + step) - loss_at(1 - step)) / (2 * step)
    assert float(found[channel]) == pytest.approx(slope**2, rel=1e-5)


def test_scaling_one_loss_by_a_thousand_leaves_scores_and_plan() -> None:
    net, data = two_task_net(), batches()
    groups = two_task_groups(net)
    loud = {"first": Task(scaled(first_loss, 1000.0)), "second": Task(second_loss)}
    safety = Safety(min_channels=1)
    plans, totals = [], []
    for tasks in (two_tasks(), loud):
        found = score(net, groups, tasks, data)
        totals.append(torch.cat([own.total for own in found.groups.values()]))
        plans.append(solve(groups, found, Budget.from_ratio(0.4), safety=safety))
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-4, atol=1e-12)
    assert plans[0].drop == plans[1].drop


@pytest.mark.parametrize("normalise", [by_mean_loss, as_they_are])
def test_what_a_channel_costs_a_loss_is_relative_and_knows_no_weights(normalise: Any) -> None:
    net, data = two_task_net(), batches()
    groups = two_task_groups(net)
    tasks = two_tasks()
    loud = {"first": Task(scaled(first_loss, 1000.0), weight=3.0), "second": tasks["second"]}
    found = score(net, groups, loud, data, importance=TaskTaylorImportance(normalise=normalise))
    for group in groups:
        effects = torch.stack(
            [
                torch.stack([effects_one_by_one(net, group, t, batch) for t in tasks.values()])
                for batch in data
            ]
        )
        with torch.no_grad():
            loss = torch.tensor(
                [[float(t.loss(net(b[0]), b) or 0) for t in tasks.values()] for b in data],
                dtype=torch.float64,
            )
        wanted = effects.square().mean(0).sqrt() / loss.mean(0)[:, None]
        torch.testing.assert_close(found[group.name].loss_increase, wanted, rtol=1e-4, atol=1e-9)


def test_without_conflict_weight_the_score_is_bit_equal_to_the_sum_of_tasks() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    plain = score(
        net, groups, two_tasks(), batches(), importance=TaskTaylorImportance(conflict_weight=0)
    )
    assert not plain.knows_conflict
    for group in groups:
        assert torch.equal(plain[group.name].total, plain[group.name].per_task.sum(0))


@pytest.mark.parametrize("conflict", [EffectConflict(), CosineConflict()])
def test_one_task_is_bit_equal_to_single_task_taylor(
    conflict: EffectConflict | CosineConflict,
) -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    one = {"second": Task(second_loss)}
    ours = score(net, groups, one, batches(), importance=TaskTaylorImportance(conflict=conflict))
    taylor = score(net, groups, one, batches(), importance=TaylorImportance())
    for group in groups:
        assert torch.equal(ours[group.name].total, taylor[group.name].total)


def test_full_conflict_weight_lies_beside_taylor_of_the_summed_loss() -> None:
    # (s + u)^2 = s^2 + u^2 + 2su: less than the sum of squares where the effects oppose, and there
    # it equals our score; where they agree ours leaves the gain out.
    net, groups = two_task_net(), two_task_groups(two_task_net())
    data = batches(1)
    ours = score(
        net, groups, two_tasks(), data, importance=TaskTaylorImportance(normalise=as_they_are)
    )
    summed = score(net, groups, two_tasks(), data, importance=TaylorImportance())[TRUNK].total
    opposed = conflict_of(ours, TRUNK) > 0
    assert opposed.any()
    assert (~opposed).any()
    torch.testing.assert_close(ours[TRUNK].total[opposed], summed[opposed])
    assert (ours[TRUNK].total[~opposed] <= summed[~opposed] * (1 + 1e-12)).all()


def test_channels_of_a_private_head_have_no_score_for_the_other_task() -> None:
    net = two_task_net()
    found = score(net, two_task_groups(net), two_tasks(), batches())
    assert torch.equal(found["first.0"].per_task[1], torch.zeros(6, dtype=torch.float64))
    assert torch.equal(found["second.0"].per_task[0], torch.zeros(5, dtype=torch.float64))


def test_a_weight_scales_the_effects_after_normalisation() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    plain = score(net, groups, two_tasks(), batches())
    heavy = two_tasks() | {"second": Task(second_loss, weight=3.0)}
    found = score(net, groups, heavy, batches())
    torch.testing.assert_close(found[TRUNK].per_task[1], 9 * plain[TRUNK].per_task[1])
    torch.testing.assert_close(found[TRUNK].per_task[0], plain[TRUNK].per_task[0])


def test_opposite_tasks_are_in_full_conflict_under_both_definitions() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    tasks = {"up": Task(second_loss), "down": Task(lambda o, b: 5 - second_loss(o, b))}
    for conflict in (EffectConflict(), CosineConflict()):
        criterion = TaskTaylorImportance(conflict=conflict, normalise=as_they_are)
        found = score(net, groups, tasks, batches(), importance=criterion)
        scale = found[TRUNK].per_task.sum(0)
        torch.testing.assert_close(
            conflict_of(found, TRUNK) / scale, torch.ones_like(scale), rtol=1e-4, atol=0
        )
        assert (found[TRUNK].total.abs() <= 1e-4 * scale).all()


def test_equal_tasks_are_in_no_conflict() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    tasks = {"one": Task(second_loss), "same": Task(second_loss)}
    for conflict in (EffectConflict(), CosineConflict()):
        found = score(
            net, groups, tasks, batches(), importance=TaskTaylorImportance(conflict=conflict)
        )
        assert all(float(conflict_of(found, g.name).abs().max()) == 0 for g in groups)


def test_batches_without_labels_of_a_task_do_not_count_for_it() -> None:
    net, groups, data = two_task_net(), two_task_groups(two_task_net()), batches(4)

    def only_late(outputs: Any, batch: Any) -> Tensor | None:
        return None if any(batch is early for early in data[:2]) else second_loss(outputs, batch)

    partly = score(net, groups, two_tasks() | {"second": Task(only_late)}, data)
    late = score(net, groups, two_tasks(), data[2:])
    torch.testing.assert_close(partly["second.0"].per_task[1], late["second.0"].per_task[1])


def test_order_of_batches_does_not_matter() -> None:
    net, groups, data = two_task_net(), two_task_groups(two_task_net()), batches(5)
    one, other = (
        score(net, groups, two_tasks(), d, importance="task_taylor") for d in (data, data[::-1])
    )
    for group in groups:
        torch.testing.assert_close(one[group.name].total, other[group.name].total)


def test_a_loss_of_zero_with_a_gradient_is_refused() -> None:
    net = two_task_net()
    tasks = two_tasks() | {
        "second": Task(lambda o, b: second_loss(o, b) - second_loss(o, b).detach())
    }
    with pytest.raises(LossError, match=r"`second` is 0 on every.*as_they_are"):
        score(net, two_task_groups(net), tasks, batches(), importance="task_taylor")


def test_a_task_that_no_channel_matters_to_scores_zero() -> None:
    net = two_task_net()
    bias = next(p for n, p in net.named_parameters() if n == "second.2.bias")
    tasks = two_tasks() | {"second": Task(lambda _o, _b: bias.square().sum())}
    found = score(net, two_task_groups(net), tasks, batches())
    assert all(float(own.per_task[1].max()) == 0 for own in found.groups.values())


def test_half_precision_weights_are_summed_in_float32() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    half = two_task_net().bfloat16()
    net.load_state_dict(half.state_dict())

    def loss(outputs: Any, batch: Any) -> Tensor:
        return second_loss({"second": outputs["second"].float()}, batch)

    tasks = {"second": Task(loss)}
    data = batches(2)
    exact = score(net, groups, tasks, data)[TRUNK].total
    rough = score(half, groups, tasks, data, forward=lambda m, b: m(b[0].bfloat16()))[TRUNK].total
    assert rough.dtype == torch.float64
    assert np.corrcoef(exact, rough)[0, 1] > 0.9


def test_a_negative_conflict_weight_is_refused() -> None:
    with pytest.raises(InputError, match="conflict_weight"):
        TaskTaylorImportance(conflict_weight=-0.1)


def test_aggregations_agree_with_their_definitions() -> None:
    scores = torch.tensor([[1.0, 4.0, 0.0], [2.0, 2.0, 0.0]], dtype=torch.float64)
    assert mean(scores).tolist() == [1.5, 3.0, 0.0]
    assert maximum(scores).tolist() == [2.0, 4.0, 0.0]
    assert total(scores).tolist() == [3.0, 6.0, 0.0]


def test_any_aggregation_can_be_handed_in() -> None:
    net, groups = two_task_net(), two_task_groups(two_task_net())
    criterion = TaskTaylorImportance(conflict_weight=0, aggregate=maximum)
    found = score(net, groups, two_tasks(), batches(), importance=criterion)
    for group in groups:
        assert torch.equal(found[group.name].total, found[group.name].per_task.amax(0))
