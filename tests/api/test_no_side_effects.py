"""Whatever stage fails, after it did its work, the model and the process are as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from front_nets import TwoTaskNet, batches, two_task_net, two_tasks, worn
from torch import Tensor, nn

import taskprune
import taskprune.coupling.fixpoint
import taskprune.front.job
import taskprune.front.pruning
import taskprune.importance.scoring
import taskprune.rewrite.apply
import taskprune.rewrite.verification
from taskprune import DistillSettings
from taskprune.testing import unchanged, visible


class Restless(TwoTaskNet):
    """Leaves traces of every forward: attributes, a counter, a cache, draws of random numbers."""

    steps: Tensor
    scratch: Tensor

    def __init__(self) -> None:
        super().__init__(24)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.steps += 1
        self.scratch = self.scratch + 1
        self.seen.append(len(x))
        self.last = x.detach() + torch.rand(())
        return super().forward(x)


class InjectedError(Exception):
    """Raised on purpose."""


STAGES = {
    "trace": (taskprune.front.job, "trace"),
    "couple": (taskprune.coupling.fixpoint, "assemble"),
    "score": (taskprune.importance.scoring, "_read"),
    "solve": (taskprune.front.job, "solve"),
    "apply": (taskprune.rewrite.apply, "cut"),
    "verify": (taskprune.rewrite.apply, "verify_against_masked"),
    "report": (taskprune.front.pruning, "make_report"),
}


def denormals_are_flushed() -> bool:
    return bool((torch.tensor([1e-39]) * 1.0 == 0).item())


@contextmanager
def process_unchanged() -> Iterator[None]:
    before = denormals_are_flushed(), torch.is_inference_mode_enabled()
    try:
        yield
    finally:
        assert (denormals_are_flushed(), torch.is_inference_mode_enabled()) == before


@contextmanager
def left_alone(net: nn.Module) -> Iterator[None]:
    """Assert that nothing changes but how often the forward wrote to a buffer."""

    writes = visible(net)["writes"]
    with unchanged(net, but=("writes",)):
        yield
    assert visible(net)["writes"] | {"steps": writes["steps"]} == writes


def restless() -> Restless:
    torch.manual_seed(0)
    net = worn(Restless())
    assert isinstance(net, Restless)
    return net


@pytest.mark.parametrize("stage", STAGES)
def test_a_failure_after_any_stage_leaves_no_trace(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = STAGES[stage]
    works = getattr(where, name)

    def fails_late(*arguments: Any, **keywords: Any) -> None:
        works(*arguments, **keywords)
        raise InjectedError

    monkeypatch.setattr(where, name, fails_late)
    net = restless()
    with process_unchanged(), left_alone(net), pytest.raises(InjectedError):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2))


def test_success_leaves_no_trace_either() -> None:
    net = restless()
    with process_unchanged(), left_alone(net):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2))


@pytest.mark.parametrize("number", range(1, 6))
def test_a_forward_that_fails_at_any_run_leaves_no_trace(number: int) -> None:
    """The model runs for traces, scores and verification, each of them may be the one to fail."""
    runs: list[int] = []

    def forward(model: Any, batch: Any) -> Any:
        runs.append(1)
        outputs = model(batch[0])
        if len(runs) >= number:
            raise KeyboardInterrupt
        return outputs

    net = restless()
    with process_unchanged(), left_alone(net), pytest.raises(KeyboardInterrupt):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2), forward=forward)


def test_a_distillation_that_fails_at_its_start_leaves_both_models() -> None:
    teacher, student = two_task_net(), worn(two_task_net(1))

    def forward(model: Any, batch: Any) -> Any:
        model(batch[0])
        raise InjectedError

    # Gradients of the student are cleared: they belong to another training.
    before = visible(teacher)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    modes = [module.training for module in student.modules()]
    with process_unchanged(), pytest.raises((InjectedError, taskprune.TaskPruneError)) as caught:
        taskprune.distill(
            student,
            teacher=teacher,
            tasks=two_tasks(),
            data=batches(2),
            forward=forward,
            settings=DistillSettings(epochs=1, cpu=True),
        )
    assert isinstance(caught.value, InjectedError) or isinstance(
        caught.value.__cause__, InjectedError
    )
    process: dict[str, Any] = {"the random generators": {}, "the process": {}}
    assert visible(teacher) | process == before | process
    assert all(torch.equal(weights[name], value) for name, value in student.state_dict().items())
    assert modes == [module.training for module in student.modules()]
