"""Models that hold what torch treats in ways of its own work, or are refused by name at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from front_nets import images
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import taskprune
from taskprune import DistillSettings, Task
from taskprune.errors import InputError
from taskprune.rewrite.surgery import duplicate
from taskprune.testing import randomise_, unchanged

TASKS = {"t": Task(loss=lambda outputs, _: outputs.square().mean())}


def layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.Dropout(0.5),
        nn.Conv2d(16, 4, 1),
    )


def by_magnitude(net: nn.Module, **options: Any) -> taskprune.PruneResult:
    return taskprune.prune(
        net, None, 0.2, example_inputs=images(2), importance="magnitude", **options
    )


# -- graphs captured from Python -------------------------------------------------------------------

CAPTURED: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(layers().eval()),
    "traced": lambda: torch.jit.trace(layers().eval(), images(2)),  # type: ignore[no-untyped-call]
    "exported": lambda: torch.export.export(layers().eval(), (images(2),)).module(),
    "exported inside": lambda: nn.Sequential(
        torch.export.export(layers().eval(), (images(2),)).module(), nn.ReLU()
    ),
}

STAGES: dict[str, Callable[[nn.Module], Any]] = {
    "prune": by_magnitude,
    "trace": lambda net: taskprune.trace(net, images(2)),
    "drop_task": lambda net: taskprune.drop_task(
        net, {**TASKS, "u": TASKS["t"]}, "t", data=[images(2)]
    ),
    "compress": lambda net: taskprune.compress(
        net, TASKS, 0.2, data=[images(2)], settings=DistillSettings(steps=1, cpu=True)
    ),
    "distill": lambda net: taskprune.distill(
        net, teacher=layers(), tasks=TASKS, data=[images(2)], settings=DistillSettings(steps=1)
    ),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", CAPTURED)
@pytest.mark.filterwarnings("ignore")
def test_a_captured_graph_is_refused_by_name(kind: str, stage: str) -> None:
    net = CAPTURED[kind]()
    with pytest.raises(InputError, match=r"Expected a model in Python.*(TorchScript|export)"):
        STAGES[stage](net)


class WithScript(nn.Module):
    """A scripted part in modes of its own, between layers in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.inner = torch.jit.script(
            nn.Sequential(nn.Conv2d(12, 20, 3), nn.Dropout(0.5), nn.Conv2d(20, 12, 1))
        )
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inner(self.first(x).relu()).relu())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_part_keeps_its_modes_and_trains_in_the_copy() -> None:
    net = randomise_(WithScript().train(), 0)
    net.get_submodule("inner").eval()
    net(images(2)).square().mean().backward()
    net.zero_grad()
    modes = [module.training for module in net.modules()]
    with unchanged(net):
        result = by_magnitude(net)
    assert [module.training for module in net.modules()] == modes
    assert [module.training for module in result.model.modules()] == modes
    assert all(parameter.is_leaf for parameter in result.model.parameters())
    result.model.train()(images(2)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


# -- what a last forward leaves --------------------------------------------------------------------


class Note:
    def __init__(self, value: Any) -> None:
        self.value = value


class Leaving(nn.Module):
    """Keeps results of the last forward in an attribute, a list, a dict, an object, a buffer."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = layers()
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.loss: Any = 0.0

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        self.loss, self.seen = h.mean(), [h, {"h": h.square()}, Note((h,))]
        self.scratch = h.sum()[None]
        return h


def test_tensors_of_a_graph_on_a_model_do_not_stand_in_the_way() -> None:
    net = Leaving()
    net(images(2)).square().mean().backward()
    loss = net.loss
    result = taskprune.prune(net, TASKS, 0.2, data=[images(2)])
    assert net.loss is loss
    assert loss.grad_fn is not None
    copied: Any = duplicate(net)
    assert copied.loss.grad_fn is None
    assert copied.loss.equal(loss)
    assert copied.seen[0] is not net.seen[0]
    taskprune.distill(
        result.model,
        teacher=net,
        tasks=TASKS,
        data=[images(2)],
        settings=DistillSettings(steps=1, cpu=True),
    )


def test_what_cannot_be_copied_is_refused_by_name() -> None:
    net = layers()
    net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="lock"):
        by_magnitude(net)


# -- objects that modules hold ---------------------------------------------------------------------


class Settings(SimpleNamespace):
    """As ultralytics keeps its arguments."""


class Slotted:
    __slots__ = ("width",)

    def __init__(self) -> None:
        self.width = 12


class Guarded:
    """Asks for more than a name when it is made."""

    def __new__(cls, token: str) -> Guarded:
        assert token
        return super().__new__(cls)

    def __init__(self, token: str) -> None:
        self.width = 12

    def __getnewargs__(self) -> tuple[str]:
        return ("again",)


class Touchy:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"no {name} here")


class Kind(Enum):
    A = 1


class KeptError(ValueError):
    width = 12


HELD = [
    SimpleNamespace(width=12),
    Settings(width=12, box=7.5),
    Slotted(),
    Guarded("token"),
    Touchy(),
    Kind.A,
    KeptError("kept"),
    range(3),
    memoryview(b"12").tolist(),
]


class Holding(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.body, self.held = layers(), held

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


@pytest.mark.parametrize("held", HELD, ids=lambda held: type(held).__name__)
def test_any_object_on_a_module_survives(held: Any) -> None:
    net = Holding(held)
    assert by_magnitude(net).report.removed("params") > 0
    assert net.held is held


@pytest.mark.parametrize("make", [SimpleNamespace, Settings])
def test_sizes_in_a_namespace_follow(make: Callable[..., Any]) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
            self.args = make(width=16)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            return self.b(x.flatten(2).view(len(x), self.args.width, *x.shape[2:]))

    result = by_magnitude(Viewing())
    smaller: Any = result.model
    assert smaller.args.width == smaller.a.weight.shape[0] < 16


# -- checkpointing ---------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return self.last(x + checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("importance", ["task_change", "task_taylor", "taylor", "cosprune"])
def test_scores_under_reentrant_checkpointing_are_those_of_the_other_kind(importance: str) -> None:
    nets = [randomise_(Checkpointed(reentrant=reentrant), 0) for reentrant in (False, True)]
    apply = CheckpointFunction.apply
    plans = [
        taskprune.prune(
            net, TASKS, 0.3, data=[images(2)], importance=importance, compensate=False
        ).plan
        for net in nets
    ]
    assert plans[0].drop == plans[1].drop
    assert CheckpointFunction.apply == apply
    assert "apply" not in vars(CheckpointFunction)
    nets[1](images(2)).sum().backward()
    assert nets[1].get_submodule("block.0").weight.grad is not None


# -- tensors without shapes or history -------------------------------------------------------------


def test_a_model_made_in_inference_mode_is_refused_with_the_way_out() -> None:
    with torch.inference_mode():
        net = layers()
    with pytest.raises(InputError, match=r"`0\.weight`.*inference_mode.*deepcopy"):
        by_magnitude(net)
    assert by_magnitude(duplicate(net)).report.removed("params") > 0


@pytest.mark.parametrize("stage", STAGES)
def test_lazy_tensors_are_named(stage: str) -> None:
    for net in (nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), nn.Sequential(nn.LazyBatchNorm2d())):
        with pytest.raises(InputError, match=r"`0\.weight`.*lazy"):
            STAGES[stage](net)
