"""Whatever the process is set to, and whoever else runs, the result is that of running alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from front_nets import TwoTaskNet, batches, images, two_task_net, two_tasks
from torch import Tensor, nn

import taskprune
from taskprune import Budget, DistillSettings, PruneSettings
from taskprune.compensation.lockstep import Stoppable
from taskprune.testing import unchanged


def state_of_process() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "oneDNN": torch._C._get_mkldnn_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "cached casts": torch.is_autocast_cache_enabled(),
        "hooks": [
            len(hooks)
            for hooks in (
                nn.modules.module._global_forward_hooks,
                nn.modules.module._global_forward_pre_hooks,
            )
        ],
        "threads": threading.active_count(),
        "generator": torch.get_rng_state().tolist(),
    }


@contextmanager
def dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_device(kind: str) -> Iterator[None]:
    torch.set_default_device(kind)
    try:
        yield
    finally:
        torch.set_default_device(None)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "default dtype float64": lambda: dtype(torch.float64),
    "default dtype bfloat16": lambda: dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "device context": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
}

RUNS: dict[str, Callable[[nn.Module, Any, nn.Module], Any]] = {
    "prune": lambda net, data, _: taskprune.prune(net, two_tasks(), 0.3, data=data).model,
    "prune by magnitude": lambda net, data, _: (
        taskprune.prune(net, None, 0.3, example_inputs=data[0][0], importance="magnitude").model
    ),
    "prune without tasks": lambda net, data, _: (
        taskprune.prune(net, None, 0.3, data=data, settings=PruneSettings(steps=2)).model
    ),
    "prune within a loss": lambda net, data, _: (
        taskprune.prune(
            net, two_tasks(), data=data, budget=Budget(macs=0.7), importance="cosprune"
        ).model
    ),
    "distill": lambda net, data, student: taskprune.distill(
        student,
        teacher=net,
        tasks=two_tasks(),
        data=data,
        settings=DistillSettings(steps=2, cpu=True),
    ),
    "drop_task": lambda net, data, _: (
        taskprune.drop_task(net, two_tasks(), "kind", data=data).model
    ),
}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.device == other[name].device
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_the_surrounding_state_changes_no_result(surrounding: str, run: str) -> None:
    net, data = two_task_net(), batches(2)
    students = [two_task_net(1) for _ in range(2)]
    alone = tensors(RUNS[run](net, data, students[0]))
    with SURROUNDINGS[surrounding](), unchanged(net):
        before = state_of_process()
        found = RUNS[run](net, data, students[1])
        assert state_of_process() == before
    assert_equal(tensors(found), alone)


def test_two_threads_get_what_each_gets_alone() -> None:
    data = batches(2)
    nets = [two_task_net(seed) for seed in (0, 1)]
    alone = [tensors(RUNS["prune"](net, data, net)) for net in nets]
    before = state_of_process()
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        RUNS["prune by magnitude"](nets[number], data, nets[number])
        found[number] = RUNS["prune"](nets[number], data, nets[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state_of_process() == before
    for number, expected in enumerate(alone):
        assert_equal(tensors(found[number]), expected)


class Interrupting(TwoTaskNet):
    """Sends the process an interrupt in the middle of one of its forwards."""

    runs = 0
    at = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        Interrupting.runs += 1
        if Interrupting.runs == Interrupting.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let interrupts come through, also where the tests run in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", range(1, 12))
def test_an_interrupt_leaves_nothing_changed(at: int) -> None:
    net = Interrupting()
    Interrupting.runs, Interrupting.at = 0, at
    before = state_of_process()
    with unchanged(net), pytest.raises(KeyboardInterrupt):
        taskprune.prune(net, two_tasks(), 0.3, data=batches(2))
    assert state_of_process() == before
    assert taskprune.prune(net, None, 0.3, example_inputs=images(), importance="magnitude")


@pytest.mark.parametrize("begun", [False, True])
def test_a_forward_that_stands_still_can_always_be_let_go(begun: bool) -> None:
    """An interrupt may come before it began, and while it stands."""
    ended: list[str] = []

    def call() -> None:
        try:
            stoppable.stop("here")
            ended.append("went on")
        finally:
            ended.append("unwound")

    stoppable = Stoppable(call)
    if begun:
        stoppable.advance()
    stoppable.abandon()
    stoppable.join()
    if not begun:
        stoppable.advance()  # as if the thread had been started meanwhile
        stoppable.join()
    assert stoppable.is_finished
    assert ended == (["unwound"] if begun else [])
