"""Tasks with data of their own, mixed precision, checkpointing, and calibration that stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_made import (
    TRUNK,
    Batch,
    TwoTaskNet,
    batches,
    conflict_of,
    first_loss,
    second_loss,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import taskprune
from taskprune.calling.task import Task
from taskprune.errors import InputError
from taskprune.importance import (
    CosineConflict,
    TaskTaylorImportance,
    by_mean_loss,
    score,
    stakes,
)
from taskprune.importance.stability import RankingStability

NET = two_task_net()
GROUPS = two_task_groups(NET)
CRITERIA = ("task_change", "task_taylor", "taylor", "cosprune")


def labels_of(batch: Batch, task: str) -> Batch:
    return batch[0], {task: batch[1][task]}


def test_own_loaders_give_each_task_the_scores_of_its_own_data() -> None:
    data = batches(5)
    own = {
        "first": [labels_of(b, "first") for b in data[:2]],
        "second": [labels_of(b, "second") for b in data[2:]],
    }
    criterion = TaskTaylorImportance(normalise=by_mean_loss)
    found = score(NET, GROUPS, two_tasks(), own, importance=criterion)
    assert found.n_batches == 5
    for row, (name, loss) in enumerate({"first": first_loss, "second": second_loss}.items()):
        alone = score(NET, GROUPS, {name: Task(loss)}, own[name], importance="task_taylor")
        losses = torch.stack([loss(NET.eval()(b[0]), b).detach() for b in own[name]])
        torch.testing.assert_close(
            found[TRUNK].per_task[row], alone[TRUNK].per_task[0] / losses.mean().double() ** 2
        )
    assert float(conflict_of(found, TRUNK).abs().max()) == 0


def test_cosine_conflict_works_across_own_loaders() -> None:
    data = batches(4)
    criterion = TaskTaylorImportance(conflict=CosineConflict())
    same = score(NET, GROUPS, two_tasks(), data, importance=criterion)
    own = {name: [labels_of(b, name) for b in data] for name in two_tasks()}
    found = score(NET, GROUPS, two_tasks(), own, importance=criterion)
    torch.testing.assert_close(conflict_of(found, TRUNK), conflict_of(same, TRUNK))


def test_own_loaders_are_cut_one_by_one() -> None:
    own = {"first": batches(5), "second": batches(2)}
    assert score(NET, GROUPS, two_tasks(), own, n_batches=3).n_batches == 5


def test_prune_takes_own_loaders() -> None:
    data = batches(4)
    own = {name: iter([labels_of(b, name) for b in data]) for name in two_tasks()}
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=own)
    assert result.report.calibration_batches == 8
    assert result.groups["first.0"].tasks == {"first"}


@pytest.mark.parametrize("names", [("first",), ("first", "third"), ("image", "label")])
def test_loaders_of_other_names_are_refused(names: tuple[str, ...]) -> None:
    data = {name: batches(1) for name in names}
    for call in (
        lambda: score(NET, GROUPS, two_tasks(), data),
        lambda: taskprune.prune(NET, two_tasks(), 0.3, data=data),
    ):
        with pytest.raises(InputError, match=r"loader for each task.*`first`, `second`"):
            call()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_batches_without_labels_of_a_task_are_taken(criterion: str) -> None:
    data = batches(3)

    def only_first(outputs: Any, batch: Any) -> Tensor | None:
        return second_loss(outputs, batch) if batch is data[0] else None

    tasks = two_tasks() | {"second": Task(only_first)}
    found = score(NET, GROUPS, tasks, data, importance=criterion)
    assert found.n_batches == 3


def test_scoring_under_autocast_comes_close_to_full_precision() -> None:
    data = batches(3)
    exact = score(NET, GROUPS, two_tasks(), data)[TRUNK].total

    def autocast(model: nn.Module, batch: Batch) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch[0])
        return {name: output.float() for name, output in outputs.items()}

    inner = score(NET, GROUPS, two_tasks(), data, forward=autocast)[TRUNK].total
    with torch.autocast("cpu", torch.bfloat16):
        outer = score(NET, GROUPS, {n: Task(_in_float(t)) for n, t in two_tasks().items()}, data)[
            TRUNK
        ].total
    for found in (inner, outer):
        assert not torch.equal(found, exact)
        assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.95


def _in_float(task: Task) -> Any:
    return lambda outputs, batch: task.loss({n: o.float() for n, o in outputs.items()}, batch)


class Checkpointed(TwoTaskNet):
    """Runs its residual block again in the backward."""

    reentrant = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        x = x + checkpoint(self.square, x, use_reentrant=self.reentrant)
        second: Tensor = checkpoint(self.second, x, use_reentrant=self.reentrant)
        return {"first": self.first(x.mean((2, 3))), "second": second}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_gradient_checkpointing_changes_nothing(criterion: str, reentrant: bool) -> None:
    net = Checkpointed()
    net.reentrant = reentrant
    net.load_state_dict(NET.state_dict())
    data = batches(2)
    found = score(net, GROUPS, two_tasks(), data, importance=criterion)
    expected = score(NET, GROUPS, two_tasks(), data, importance=criterion)
    for group in GROUPS:
        torch.testing.assert_close(found[group.name].total, expected[group.name].total)


def test_each_batch_takes_one_forward_and_one_backward_a_task() -> None:
    counted = {"forward": 0, "backward": 0}

    def count(key: str) -> None:
        counted[key] += 1

    def forward(model: nn.Module, batch: Batch) -> Any:
        count("forward")
        outputs = model(batch[0])
        for output in outputs.values():
            output.register_hook(lambda _: count("backward"))
        return outputs

    for criterion in CRITERIA:
        counted.update(forward=0, backward=0)
        score(NET, GROUPS, two_tasks(), batches(3), importance=criterion, forward=forward)
        # It takes two forwards in all, however many batches, for what there is to lose.
        extra = stakes.BATCHES if criterion == "task_taylor" else 0
        # The default's second one a task is of the outputs; before it, the losses are asked there.
        passes = 3 if criterion == "task_change" else 1
        assert counted == {"forward": 3 + extra, "backward": 6 * passes}, criterion


def endless() -> Iterator[Batch]:
    seed = 0
    while True:
        yield from batches(1, seed=seed)
        seed += 1


@pytest.mark.parametrize("criterion", ["task_taylor", "taylor"])
def test_calibration_stops_when_the_ranking_is_stable(criterion: str) -> None:
    data = batches(1) * 200
    found = score(NET, GROUPS, two_tasks(), data, importance=criterion, calibrate="auto")
    # The same batch again and again never moves the ranking: the third look ends it.
    assert found.n_batches == 9


@pytest.mark.parametrize(("n_batches", "ended"), [(6, True), (40, False)])
def test_data_that_ends_before_the_ranking_is_stable_is_logged(
    n_batches: int, ended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="taskprune"):
        score(
            NET,
            GROUPS,
            two_tasks(),
            batches(1) * n_batches,
            importance="task_taylor",
            calibrate="auto",
        )
    assert ("not stable yet after all 6 calibration batches" in caplog.text) == ended
    assert bool(caplog.records) == ended


def test_noisy_scores_take_longer_than_steady_ones() -> None:
    found = score(NET, GROUPS, two_tasks(), endless(), n_batches=60, calibrate="auto")
    assert 9 < found.n_batches <= 60


def test_prune_says_how_many_batches_it_took() -> None:
    data = batches(1) * 40
    result = taskprune.prune(
        two_task_net(),
        two_tasks(),
        0.3,
        data=data,
        importance="task_taylor",
        settings=taskprune.PruneSettings(calibrate="auto"),
    )
    assert result.report.calibration_batches == result.scores.n_batches == 9


def test_a_criterion_that_cannot_tell_is_refused() -> None:
    class AtTheEnd(TaskTaylorImportance):
        def __call__(self, model: nn.Module, groups: Any, evidence: Any, /) -> Any:
            return super().__call__(model, groups, replace(evidence, settled=None))

    with pytest.raises(InputError, match=r"calibrate='auto'.*n_batches="):
        score(NET, GROUPS, two_tasks(), batches(2), importance=AtTheEnd(), calibrate="auto")
    with pytest.raises(InputError, match="'all' or 'auto'"):
        score(NET, GROUPS, two_tasks(), batches(2), calibrate="some")  # type: ignore[arg-type]


def test_a_ranking_that_keeps_changing_is_not_stable() -> None:
    settled = RankingStability()
    generator = torch.Generator().manual_seed(0)
    assert not any(settled(n, torch.rand(100, generator=generator)) for n in range(1, 200))
