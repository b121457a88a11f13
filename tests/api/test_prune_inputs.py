"""What ``prune`` can be given: criteria of all kinds, batches of all forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch_pruning as tp
from front_nets import (
    Batch,
    Plain,
    TwoInputs,
    batches,
    images,
    two_task_net,
    two_tasks,
    worn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

import taskprune
from taskprune import PruneSettings, Task
from taskprune.cost import measure_macs
from taskprune.importance import TorchPruningImportance
from taskprune.testing import randomise_, unchanged

# -- without tasks, without data -------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["magnitude", "random"])
@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (Plain, images(2)),
        (Plain, (images(2),)),
        (TwoInputs, (images(2), torch.tensor(2.0))),
        (TwoInputs, {"scale": torch.tensor(2.0), "image": images(2)}),
    ],
    ids=["tensor", "tuple of one", "tuple", "dict"],
)
def test_data_free_criteria_need_example_inputs_only(
    net: Callable[[], nn.Module], inputs: Any, importance: str
) -> None:
    result = taskprune.prune(
        randomise_(net(), 0), None, 0.3, example_inputs=inputs, importance=importance
    )
    assert result.report.removed("params") >= 0.3
    assert result.report.calibration_batches == 0
    assert result.scores.tasks == ("all",)
    assert result.report.verification is not None


def test_tasks_that_declare_outputs_need_no_data_with_a_data_free_criterion() -> None:
    result = taskprune.prune(
        two_task_net(), two_tasks(), 0.3, example_inputs=images(2), importance="magnitude"
    )
    assert result.groups["kind.0"].tasks == {"kind"}


CRITERIA: dict[str, Callable[[], Any]] = {
    name: getattr(tp.importance, name)
    for name in (
        "MagnitudeImportance",
        "GroupMagnitudeImportance",
        "BNScaleImportance",
        "LAMPImportance",
        "FPGMImportance",
        "RandomImportance",
        "TaylorImportance",
        "GroupTaylorImportance",
        "HessianImportance",
        "GroupHessianImportance",
        "ActivationImportance",
    )
}


@pytest.mark.parametrize("make", CRITERIA.values(), ids=CRITERIA)
def test_criteria_of_torch_pruning_prune(make: Callable[[], Any]) -> None:
    net = worn(two_task_net())
    criterion = TorchPruningImportance(make())
    with unchanged(net):
        result = taskprune.prune(net, two_tasks(), 0.3, data=batches(2), importance=criterion)
    assert 0.3 <= result.report.removed("params") <= 0.34


# -- forms of data ---------------------------------------------------------------------------------


def only_output(outputs: Any, _batch: Any) -> Tensor:
    return outputs.square().mean()  # type: ignore[no-any-return]


@dataclass
class Sample:
    """A batch of a kind that the conventions do not know."""

    pixels: Tensor


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        (images(2), None),
        ((images(2), torch.zeros(2)), None),
        ([images(2), torch.zeros(2), torch.ones(2)], None),
        ({"x": images(2)}, None),
        (({"x": images(2)}, torch.zeros(2)), None),
        (Sample(images(2)), lambda model, batch: model(batch.pixels)),
    ],
    ids=["tensor", "pair", "list", "dict", "dict and target", "custom"],
)
def test_every_form_of_batch_gives_the_same_plan(batch: Any, forward: Any) -> None:
    tasks = {"only": Task(only_output)}
    net = randomise_(Plain(), 0)
    found = taskprune.prune(net, tasks, 0.3, data=[batch, batch], forward=forward)
    expected = taskprune.prune(net, tasks, 0.3, data=[images(2), images(2)])
    assert found.plan == expected.plan
    assert found.report.calibration_batches == 2


def test_an_iterator_is_scored_from_its_first_batch_on() -> None:
    data = batches(3)
    expected = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=data)
    found = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=(batch for batch in data))
    assert found.report.calibration_batches == 3
    assert found.plan == expected.plan


def test_data_is_gone_through_once() -> None:
    drawn: list[int] = []

    class Counting:
        def __iter__(self) -> Iterator[Batch]:
            for number, batch in enumerate(batches(3)):
                drawn.append(number)
                yield batch

    taskprune.prune(
        two_task_net(), two_tasks(), 0.3, data=Counting(), settings=PruneSettings(n_batches=2)
    )
    assert drawn == [0, 1]


def test_labels_may_be_missing_in_the_first_batches() -> None:
    """A shuffled loader of several data sets starts with whichever it happens to draw."""
    data = batches(4)
    declared = two_tasks()

    def late(outputs: Any, batch: Any) -> Tensor | None:
        return (
            None if any(batch is own for own in data[:2]) else declared["map"].loss(outputs, batch)
        )

    undeclared = {"kind": Task(declared["kind"].loss), "map": Task(late)}
    expected = {"kind": declared["kind"], "map": Task(late, outputs="map")}
    found = [
        taskprune.prune(two_task_net(), tasks, 0.3, data=iter(data))
        for tasks in (undeclared, expected)
    ]
    assert found[0].plan == found[1].plan
    assert found[0].report.calibration_batches == 4


def test_a_shuffling_loader_is_left_to_its_order() -> None:
    x, kind, values = (torch.cat(parts) for parts in zip(*batches(3), strict=True))
    samples = list(zip(x, kind, values, strict=True))
    net = two_task_net()
    state = torch.get_rng_state()
    plans = []
    for _ in range(2):
        torch.set_rng_state(state)
        loader: DataLoader[Any] = DataLoader(samples, batch_size=8, shuffle=True)  # type: ignore[arg-type]
        plans.append(taskprune.prune(net, two_tasks(), 0.3, data=loader).plan)
        assert torch.equal(torch.get_rng_state(), state)
    assert plans[0] == plans[1]


def test_an_example_beside_the_data_is_what_the_model_will_run_on() -> None:
    """Scores are of the data, costs and verification of the example."""
    data, example = batches(4), torch.randn(1, 3, 16, 20)
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=data, example_inputs=example)
    alone = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=data)
    assert result.plan.drop == alone.plan.drop
    assert result.report.calibration_batches == 4
    assert result.groups.batch_size == 1
    macs = result.plan.costs["macs"]
    assert macs == tuple(measure_macs(net, example) for net in (two_task_net(), result.model))


def test_without_tasks_every_output_is_one() -> None:
    images_alone = [batch[0] for batch in batches(4)]
    result = taskprune.prune(two_task_net(), None, 0.3, data=images_alone)
    assert result.scores.criterion == "output_change"
    assert [line.task for line in result.report.tasks] == ["kind", "map"]
    assert result.report.removed("params") >= 0.3
    again = taskprune.prune(two_task_net(), ratio=0.3, data=iter(images_alone))
    assert again.plan == result.plan
