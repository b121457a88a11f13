"""Scoring borrows the model and gives it back; bad losses and data are refused by name."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import (
    Batch,
    TwoTaskNet,
    batches,
    first_loss,
    second_loss,
    totals,
    two_task_groups,
    two_task_net,
    two_tasks,
)
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.errors import InputError, LossError, PlanMismatchError, TraceError
from taskprune.importance import score
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.scores import Evidence
from taskprune.testing import unchanged


def prepared() -> nn.Module:
    """A net with a mixture of flags: partly frozen, partly in training, with gradients."""
    net = two_task_net()
    net.train()
    net.norm.eval()
    net.stem.weight.requires_grad_(False)
    net.norm.weight.grad = torch.full_like(net.norm.weight, 2.0)
    return net


def failing(outputs: Any, batch: Any) -> Tensor:
    raise RuntimeError("no such label")


CRITERIA = ("task_change", "task_taylor", "taylor", "cosprune", "magnitude", "random")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_no_trace_in_the_model(criterion: str) -> None:
    net = prepared()

    def noisy(model: nn.Module, batch: Batch) -> Any:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        return model(batch[0])

    with unchanged(net):
        score(
            net, two_task_groups(net), two_tasks(), batches(), importance=criterion, forward=noisy
        )


@pytest.mark.parametrize("criterion", ["task_change", "task_taylor", "taylor", "cosprune"])
def test_a_failing_loss_leaves_no_trace_in_the_model(criterion: str) -> None:
    net = prepared()
    tasks = two_tasks() | {"second": Task(failing)}
    with unchanged(net), pytest.raises(LossError):
        score(net, two_task_groups(net), tasks, batches(), importance=criterion)


def test_frozen_parameters_are_scored_as_well() -> None:
    net, frozen = two_task_net(), two_task_net()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    groups = two_task_groups(net)
    one, other = (score(n, groups, two_tasks(), batches()) for n in (net, frozen))
    torch.testing.assert_close(totals(one), totals(other), rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_surrounding_no_grad_does_not_matter(context: Callable[[], Any]) -> None:
    net = two_task_net()
    groups, data = two_task_groups(net), batches()
    expected = score(net, groups, two_tasks(), data)
    with context():
        found = score(net, groups, two_tasks(), data)
    torch.testing.assert_close(totals(found), totals(expected), rtol=0, atol=0)


def test_a_forward_that_caches_tensors_is_scored_on_every_batch() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net: TwoTaskNet = two_task_net()
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Any:
            if "bias" not in self.cache:
                self.cache["bias"] = self.net.norm.bias * 1.0
                self.last = self.cache["bias"]
            outputs = self.net(x)
            outputs["second"] = outputs["second"] + self.cache["bias"].mean()
            return outputs

    model = Caching()
    seen: list[int] = []
    rounds = for_each_batch(
        model,
        dict(model.named_parameters()),
        Evidence(two_tasks(), batches(3)),
        lambda batch: seen.extend(found.task for found in batch),
    )
    assert rounds == 3
    assert seen == [0, 1] * 3
    assert model.cache == {}
    assert not hasattr(model, "last")


def second(loss: Callable[[Any, Any], Any]) -> dict[str, Task]:
    return {"first": Task(first_loss), "second": Task(loss)}


BAD_LOSSES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a number": (lambda o, b: second_loss(o, b).item(), r"a float: return the tensor itself"),
    "a map": (lambda o, _: o["second"], r"shape \(2, 1, 8, 8\): reduce it"),
    "nan": (lambda o, b: second_loss(o, b) * float("nan"), r"it is nan: check"),
    "detached": (lambda o, b: second_loss(o, b).detach(), r"without a gradient"),
    "raising": (failing, r"RuntimeError: no such label"),
    "elsewhere": (
        lambda _o, _b: torch.ones((), requires_grad=True) * 2,
        r"does not depend on any parameter",
    ),
    "unlabelled": (lambda _o, _b: None, r"returned None"),
}


@pytest.mark.parametrize(("loss", "message"), BAD_LOSSES.values(), ids=BAD_LOSSES)
def test_a_bad_loss_is_refused_with_the_name_of_its_task(
    loss: Callable[[Any, Any], Any], message: str
) -> None:
    net = two_task_net()
    with pytest.raises(LossError, match=rf"(?s)`second`.*{message}"):
        score(net, two_task_groups(net), second(loss), batches())


def test_an_infinite_slope_is_refused() -> None:
    net = two_task_net()
    with pytest.raises(LossError, match=r"gradient of task `second` is not finite.*batch 1"):
        score(
            net,
            two_task_groups(net),
            second(lambda outputs, _: (outputs["second"] * 0).sum().abs().sqrt()),
            batches(),
        )


def test_the_message_says_which_batch() -> None:
    net, data = two_task_net(), batches(4)

    def loss(outputs: Any, batch: Any) -> Tensor:
        return second_loss(outputs, batch) * (float("inf") if batch is data[2] else 1.0)

    with pytest.raises(LossError, match="batch 3"):
        score(net, two_task_groups(net), second(loss), data)


def test_a_batch_that_the_model_rejects_is_named() -> None:
    net = two_task_net()
    data = [batches(1)[0], (torch.rand(2, 5, 8, 8), {})]
    with pytest.raises(TraceError, match=r"batch 2 \(a tuple\).*RuntimeError") as caught:
        score(net, two_task_groups(net), two_tasks(), data)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("data", [None, [], iter(())], ids=["none", "list", "iterator"])
def test_no_data_is_refused(data: Any) -> None:
    net = two_task_net()
    with pytest.raises(InputError, match=r"at least one calibration batch.*`data=`"):
        score(net, two_task_groups(net), two_tasks(), data)


def test_no_tasks_are_refused_by_criteria_that_need_them() -> None:
    net = two_task_net()
    with pytest.raises(InputError, match=r"needs the tasks' losses.*magnitude"):
        score(net, two_task_groups(net), data=batches())


def test_groups_of_another_model_are_refused() -> None:
    with pytest.raises(PlanMismatchError, match="that this model does not have"):
        score(nn.Linear(3, 3), two_task_groups(two_task_net()), two_tasks(), batches())


def test_only_as_many_batches_as_asked_for_are_drawn() -> None:
    net, drawn = two_task_net(), []

    def loader() -> Iterator[Batch]:
        for batch in batches(5):
            drawn.append(batch)
            yield batch

    done: list[int] = []
    found = score(
        net, two_task_groups(net), two_tasks(), loader(), n_batches=2, progress=done.append
    )
    assert found.n_batches == len(drawn) == 2
    assert done == [1, 2]


def test_whoever_watches_sees_every_forward_and_backward() -> None:
    net, data = two_task_net(), batches(2)
    watch = Inputs("second.0")
    score(net, two_task_groups(net), two_tasks(), data, importance="task_taylor", watch=watch)
    assert len(watch.gradients) == 4
    x = torch.relu(net.eval().norm(net.stem(data[0][0])))
    x = (x + net.square(x)).detach().requires_grad_()
    outputs = {"first": net.first(x.mean((2, 3))), "second": net.second(x)}
    for gradient, loss in zip(watch.gradients, (first_loss, second_loss), strict=False):
        (expected,) = torch.autograd.grad(loss(outputs, data[0]), x)
        torch.testing.assert_close(gradient, expected)


class Inputs:
    """Hears the gradients of what a layer reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.heard: Tensor | None = None
        self.gradients: list[Tensor] = []

    def wants(self, tasks: Mapping[str, Task]) -> bool:
        return list(tasks) == ["first", "second"]

    @contextmanager
    def recording(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        def hear(gradient: Tensor) -> None:
            self.heard = gradient.clone()

        handle = model.get_submodule(self.path).register_forward_pre_hook(
            lambda _module, args: args[0].register_hook(hear) and None
        )
        try:
            yield
        finally:
            handle.remove()

    def listening(self, batch: Iterator[TaskGradients]) -> Iterator[TaskGradients]:
        for found in batch:
            assert self.heard is not None
            self.gradients.append(self.heard)
            yield found
