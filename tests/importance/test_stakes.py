"""What a task has to lose, and effects in units of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hand_made import Batch, batches, two_task_groups, two_task_net
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.importance import TaskTaylorImportance, by_mean_loss, by_stake, score
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.effects import collect
from taskprune.importance.scores import ChannelScores, Evidence
from taskprune.importance.stakes import BATCHES

NET = two_task_net().eval()
GROUPS = two_task_groups(NET)
DATA = batches(5)
PREFIXES = ("stem", "norm", "square", "first.0", "second.0", "first.2.weight", "second.2.weight")


def near(output: str, *, factor: float = 1.0, plus: float = 0.0) -> Task:
    """A task that the net does well: its labels are what it says, a little moved."""

    def loss(outputs: Any, batch: Batch) -> Tensor:
        with torch.no_grad():
            x = torch.relu(SOUND.norm(SOUND.stem(batch[0])))
            x = x + SOUND.square(x)
            labels = {"first": SOUND.first(x.mean((2, 3))), "second": SOUND.second(x)}[output]
        wave = torch.sin(torch.arange(labels.numel()) * 1.7).view(labels.shape)
        found: Tensor = factor * (outputs[output] - labels - 0.1 * wave).square().mean() + plus
        return found

    return Task(loss)


SOUND = two_task_net().eval()


def scores(second: Task, normalise: Any = by_stake) -> ChannelScores:
    criterion = TaskTaylorImportance(normalise=normalise)
    return score(
        NET, GROUPS, {"first": near("first"), "second": second}, DATA, importance=criterion
    )


def total(found: ChannelScores) -> Tensor:
    return torch.cat([own.total for own in found.groups.values()])


def stakes_of(tasks: dict[str, Task]) -> Tensor:
    evidence = Evidence(tasks=tasks, batches=DATA, forward=lambda model, batch: model(batch[0]))
    found = collect(NET, ChannelIndex(GROUPS), evidence, with_stakes=True).stakes
    assert found is not None
    return found


def test_a_stake_is_the_loss_without_any_channel_less_the_loss() -> None:
    tasks = {"first": near("first"), "second": near("second")}
    silent = two_task_net().eval()
    with torch.no_grad():
        for name, parameter in silent.named_parameters():
            if name.startswith(PREFIXES):
                parameter.zero_()
        expected = torch.zeros(2, dtype=torch.float64)
        for batch in DATA[:2]:
            for row, task in enumerate(tasks.values()):
                silenced, own = task.loss(silent(batch[0]), batch), task.loss(NET(batch[0]), batch)
                assert silenced is not None
                assert own is not None
                expected[row] += (silenced - own) / 2
    torch.testing.assert_close(stakes_of(tasks), expected, rtol=1e-5, atol=1e-7)


def test_neither_a_factor_nor_a_constant_in_a_loss_changes_the_scores() -> None:
    plain = scores(near("second"))
    torch.testing.assert_close(total(scores(near("second", factor=1000.0))), total(plain))
    # From ten stakes on a task would count by its loss.
    constant = 5 * float(stakes_of({"first": near("first"), "second": near("second")})[1])
    offset = scores(near("second", plus=constant))
    torch.testing.assert_close(total(offset), total(plain), rtol=1e-4, atol=1e-9)


def test_by_the_mean_loss_a_constant_makes_a_task_quiet() -> None:
    loud, quiet = (scores(near("second", plus=p), by_mean_loss) for p in (0.0, 10.0))
    assert float(quiet["second.0"].per_task[1].max()) < 1e-3 * float(
        loud["second.0"].per_task[1].max()
    )


@pytest.mark.parametrize("fails", [True, False])
def test_a_loss_that_cannot_do_without_features_counts_by_itself(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sound = near("second")

    def fragile(outputs: Any, batch: Batch) -> Tensor | None:
        spread = outputs["second"].std()
        if fails and not float(spread.detach()):
            raise ZeroDivisionError("no spread")
        found = sound.loss(outputs, batch)
        assert found is not None
        return found if fails else found + 0 * spread.log()

    before = {name: t.clone() for name, t in NET.state_dict().items()}
    memory = {name: t.data_ptr() for name, t in NET.named_parameters()}
    with caplog.at_level(logging.WARNING, "taskprune"):
        found = scores(Task(fragile))
    assert "the loss of `second` is not known" in caplog.text
    assert bool(torch.isfinite(total(found)).all())
    assert all(torch.equal(t, before[name]) for name, t in NET.state_dict().items())
    assert {name: t.data_ptr() for name, t in NET.named_parameters()} == memory


def test_a_model_that_fails_in_between_gets_its_weights_back() -> None:
    calls = 0

    def forward(model: nn.Module, batch: Batch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return model(batch[0])

    tasks = {"first": near("first"), "second": near("second")}
    before = {name: t.clone() for name, t in NET.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        score(NET, GROUPS, tasks, DATA, importance="task_taylor", forward=forward)
    assert all(torch.equal(t, before[name]) for name, t in NET.state_dict().items())


LABELLED: dict[str, Callable[[int], bool]] = {
    "first": lambda i: i % 2 == 0,
    "second": lambda i: i > 2,
}


def test_stakes_are_measured_where_a_task_has_labels() -> None:
    def some(name: str) -> Task:
        whole = near(name)

        def loss(outputs: Any, batch: Batch) -> Tensor | None:
            number = next(i for i, b in enumerate(DATA) if b[0] is batch[0])
            return whole.loss(outputs, batch) if LABELLED[name](number) else None

        return Task(loss)

    stakes = stakes_of({"first": some("first"), "second": some("second")})
    assert bool((stakes > 0).all())


def fragile(name: str) -> Task:
    """A task whose loss raises where all its samples look the same."""
    sound = near(name)

    def loss(outputs: Any, batch: Batch) -> Tensor | None:
        if torch.equal(outputs[name][0], outputs[name][1]):
            raise ZeroDivisionError("no spread")
        return sound.loss(outputs, batch)

    return Task(loss)


def test_a_loss_that_fails_without_features_takes_no_other_stake_along() -> None:
    expected = stakes_of({"first": near("first"), "second": near("second")})
    behind = stakes_of({"second": fragile("second"), "first": near("first")})
    before = stakes_of({"first": near("first"), "second": fragile("second")})
    assert float(behind[1]) == float(before[0]) == float(expected[0])
    assert bool(behind[0].isnan())
    assert bool(before[1].isnan())


def test_the_order_of_the_tasks_does_not_matter_where_a_loss_fails_without_features() -> None:
    tasks = {"first": near("first"), "second": fragile("second")}
    one = score(NET, GROUPS, tasks, DATA, importance="task_taylor")
    other = score(NET, GROUPS, dict(reversed(tasks.items())), DATA, importance="task_taylor")
    torch.testing.assert_close(total(one), total(other))


def test_what_is_not_known_counts_by_the_loss_itself() -> None:
    by_itself = scores(fragile("second"))
    by_loss = scores(near("second"), by_mean_loss)
    for name, own in by_loss.groups.items():
        assert torch.equal(by_itself[name].per_task[1], own.per_task[1])


def test_a_known_stake_is_a_tenth_of_the_loss_at_the_least() -> None:
    by_itself = scores(near("second", plus=1e4))
    by_loss = scores(near("second", plus=1e4), by_mean_loss)
    for name, own in by_loss.groups.items():
        torch.testing.assert_close(by_itself[name].per_task[1], 100 * own.per_task[1])


def test_a_stake_that_cannot_be_known_costs_two_forwards_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    def forward(model: nn.Module, batch: Batch) -> Any:
        nonlocal calls
        calls += 1
        return model(batch[0])

    tasks = {"first": fragile("first"), "second": fragile("second")}
    with caplog.at_level(logging.WARNING, "taskprune"):
        score(NET, GROUPS, tasks, DATA, importance="task_taylor", forward=forward)
    assert calls == len(DATA) + BATCHES
    assert [record.getMessage().count("ZeroDivisionError") for record in caplog.records] == [1, 1]


def test_a_model_that_fails_without_features_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def forward(model: nn.Module, batch: Batch) -> Any:
        outputs = model(batch[0])
        if torch.equal(outputs["second"][0], outputs["second"][1]):
            raise ZeroDivisionError("no spread")
        return outputs

    tasks = {"first": near("first"), "second": near("second")}
    with caplog.at_level(logging.WARNING, "taskprune"):
        found = score(NET, GROUPS, tasks, DATA, importance="task_taylor", forward=forward)
    assert "the loss of `first`, `second` is not known" in caplog.text
    assert len(caplog.records) == 1
    assert bool(torch.isfinite(total(found)).all())
