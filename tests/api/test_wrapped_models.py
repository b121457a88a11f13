"""Models inside wrappers: taken out with a message, wherever a model enters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from front_nets import Plain, TwoTaskNet, batches, images, two_task_net, two_tasks
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore

import taskprune
from taskprune import Budget, DistillSettings, errors
from taskprune.calling.wrappers import unwrap
from taskprune.rewrite import remap_optimizer


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager")


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "DDP": lambda net: nn.parallel.DistributedDataParallel(net),
    "compile of DataParallel": lambda net: compiled(nn.DataParallel(net)),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@every_wrapper
@pytest.mark.usefixtures("one_process")
def test_a_wrapped_model_gives_the_result_of_the_bare_one(
    wrap: Callable[[nn.Module], Any], caplog: pytest.LogCaptureFixture
) -> None:
    net = two_task_net()
    expected = taskprune.prune(net, two_tasks(), 0.3, data=batches(2))
    wrapped = wrap(net)
    with caplog.at_level(logging.WARNING, "taskprune"):
        found = taskprune.prune(wrapped, two_tasks(), 0.3, data=batches(2))
    assert type(found.model) is TwoTaskNet
    assert found.plan == expected.plan
    assert found.report.notes
    assert all("To wrap it again" in note for note in found.report.notes)
    assert "comes back is bare" in str(found).replace("\n", " ")
    assert found.report.notes[0] in caplog.text
    assert unwrap(wrapped)[0] is net


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
@every_wrapper
@pytest.mark.usefixtures("one_process")
def test_every_stage_takes_a_wrapped_model(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    net = two_task_net()
    wrapped = wrap(net)
    graph = taskprune.trace(wrapped, images(2))
    assert list(graph.parameters) == [name for name, _ in net.named_parameters()]
    groups = taskprune.couple(graph)
    scores = taskprune.score(wrapped, groups, importance="magnitude")
    plan = taskprune.solve(groups, scores, Budget.from_ratio(0.3))
    smaller = taskprune.apply_plan(wrapped, plan, example_inputs=images(2))
    assert type(smaller) is TwoTaskNet
    path = tmp_path / "small.safetensors"
    taskprune.save_checkpoint(path, wrap(smaller), plan)
    loaded = taskprune.load_checkpoint(path, wrapped)
    assert type(loaded) is TwoTaskNet
    assert torch.equal(loaded(images(2))["map"], smaller(images(2))["map"])
    optimizer = torch.optim.Adam(wrapped.parameters())
    assert remap_optimizer(optimizer, wrapped, wrap(smaller), plan).param_groups
    dropped = taskprune.drop_task(wrapped, two_tasks(), "map", data=batches(1))
    assert type(dropped.model) is TwoTaskNet


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel], ids=["compile", "DataParallel"])
def test_distilling_returns_the_bare_student(wrap: Callable[[nn.Module], Any]) -> None:
    net = two_task_net()
    result = taskprune.prune(net, two_tasks(), 0.3, data=batches(2))
    student = taskprune.distill(
        wrap(result.model),
        teacher=wrap(net),
        tasks=two_tasks(),
        data=batches(2),
        plan=result.plan,
        settings=DistillSettings(epochs=1, cpu=True),
    )
    assert student is result.model


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_parts_of_a_model_stay_compiled() -> None:
    net = Plain()
    net.layers = compiled(net.layers)
    result = taskprune.prune(net, None, 0.3, example_inputs=images(2), importance="magnitude")
    assert type(result.model.layers) is type(net.layers)
    assert result.model(images(2)).shape == (2, 5)
    assert result.report.notes == ()


def test_a_model_compiled_in_place_stays_so() -> None:
    net = Plain()
    net.compile(backend="eager")
    taskprune.prune(net, None, 0.3, example_inputs=images(2), importance="magnitude")
    assert net._compiled_call_impl is not None


def test_a_module_that_holds_the_model_is_a_model_like_any_other() -> None:
    """As in the training frameworks that keep the net in an attribute of their own module."""

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Plain()

        def forward(self, x: Tensor) -> Any:
            return self.module(x)

    result = taskprune.prune(
        Training(), None, 0.3, example_inputs=images(2), importance="magnitude"
    )
    assert type(result.model) is Training
    assert type(result.model.module) is Plain
    assert result.report.notes == ()


def test_sharded_models_are_refused_with_the_way_out() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(sharded)
    with pytest.raises(errors.InputError, match=r"FSDP.*full state dict.*shard the result"):
        taskprune.prune(
            nn.Sequential(sharded), None, 0.3, example_inputs=images(2), importance="magnitude"
        )


def test_unwrapping_a_bare_model_gives_it_back() -> None:
    net = Plain()
    assert unwrap(net) == (net, ())
