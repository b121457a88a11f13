"""What a trace records, and that it leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, NetCase
from zoo.forwards import AuxiliaryHead, CachesTensors, ReadsValues, UnusedAndFrozen
from zoo.maps import Residual, ThreeHeads

from taskprune.calling.task import Task
from taskprune.errors import InputError, TraceError
from taskprune.graph import ModelGraph, trace
from taskprune.graph.reach import tasks_reached
from taskprune.testing import unchanged


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", ZOO, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_a_trace_leaves_the_model_as_it_was(case: NetCase, training: bool) -> None:
    model = case.make().double().train(training)
    inputs = case.inputs()  # some draw them
    with unchanged(model, but=("writes",)):
        trace(model, inputs, modes="both")


class Mutates(nn.Module):
    """A forward that changes everything it can reach, then fails if asked to."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.layer, self.fails, self.sizes = nn.Conv2d(3, 4, 1), fails, [1, 2]
        self.register_buffer("count", torch.zeros(()))
        self.mark: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.count, Tensor)
        self.count += x.sum().item()
        x[:, 0].zero_()
        self.sizes.append(3)
        self.mark = [1]
        self.register_buffer("made", torch.ones(2))
        self.layer.register_forward_hook(lambda *_: None)
        self.train(not self.training)
        random.random()
        np.random.rand()  # noqa: NPY002 - the generator that users share
        y = self.layer(x) + torch.rand(())
        if self.fails:
            raise RuntimeError("broken on purpose")
        return y  # type: ignore[no-any-return]


@pytest.mark.parametrize("fails", [True, False])
def test_state_comes_back_whatever_the_forward_does(fails: bool) -> None:
    model, x = Mutates(fails=fails), image()
    inputs = x.clone()
    with unchanged(model, but=("writes",)):
        if fails:
            with pytest.raises(TraceError, match="broken on purpose") as caught:
                trace(model, x)
            assert isinstance(caught.value.__cause__, RuntimeError)
        else:
            assert trace(model, x).used_real_tensors
    assert torch.equal(x, inputs)
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._len_torch_dispatch_stack() == 0


def test_nothing_is_computed_unless_values_are_needed() -> None:
    assert not trace(Residual(), image()).used_real_tensors
    assert trace(ReadsValues(), image()).used_real_tensors


def test_caches_stay_usable_after_a_trace() -> None:
    model = CachesTensors().eval()
    trace(model, image())
    assert model.cache == {}
    assert model(image()).isfinite().all()


def test_the_training_pass_is_added_where_evaluation_leaves_parameters_out() -> None:
    assert trace(Residual(), image()).modes == ("eval",)
    graph = trace(AuxiliaryHead(), image())
    assert graph.modes == ("eval", "train")
    assert graph.untraced == ()
    assert [output.path for output in graph.outputs] == ["output", "0", "1"]
    assert trace(AuxiliaryHead(), image(), modes="eval").untraced != ()


def test_a_training_pass_that_fails_is_left_out_with_a_note() -> None:
    class Broken(AuxiliaryHead):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise RuntimeError("no targets")
            return super().forward(x)

    graph = trace(Broken(), image())
    assert graph.modes == ("eval",)
    assert "no targets" in graph.notes[0]
    with pytest.raises(TraceError, match="train mode"):
        trace(Broken(), image(), modes="both")


def test_unused_parameters_are_named() -> None:
    assert trace(UnusedAndFrozen(), image()).untraced == ("unused.weight", "unused.bias")


def test_operators_know_their_module_and_line() -> None:
    graph = trace(Residual(), image())
    calls = [op.call for op in graph.operations if op.target == "aten.convolution.default"]
    assert [call.module for call in calls] == ["stem", "inner", "outer", "head"]
    assert all("maps.py:" in call.source for call in calls)


def total(outputs: dict[str, Tensor], _: object) -> Tensor:
    return outputs["box"].sum()


@pytest.mark.parametrize(
    "tasks",
    [
        {"a": Task(loss=total, outputs="box"), "b": Task(loss=total)},
        {"a": "box", "b": ()},
        {"a": ["box"], "b": []},
    ],
)
def test_tasks_own_output_paths(tasks: Any) -> None:
    assert trace(ThreeHeads(), image(), tasks=tasks).tasks == {"a": ("box",), "b": ()}


def test_an_output_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="'box', 'lane', 'area'"):
        trace(ThreeHeads(), image(), tasks={"a": "boxes"})


def test_parameters_reach_the_tasks_downstream_of_them() -> None:
    tasks = {"box": "box", "lane": "lane", "area": "area"}
    reached = tasks_reached(trace(ThreeHeads(), image(), tasks=tasks))
    assert reached["trunk.weight"] == {"box", "lane", "area"}
    assert reached["lane.0.bias"] == {"lane"}


def test_in_place_writes_carry_tasks_along() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            made = x.new_zeros(x.shape[0], 8, *x.shape[2:])
            made[:, :4] = self.layer(x)
            return made

    assert tasks_reached(trace(Writes(), image(), tasks={"a": "output"}))["layer.weight"] == {"a"}


@pytest.mark.parametrize("inputs", [image(), (image(),), {"x": image()}])
def test_inputs_are_passed_as_the_model_takes_them(inputs: Any) -> None:
    graph = trace(Residual(), inputs)
    assert isinstance(graph, ModelGraph)
    assert graph.batch_size == 2


def test_a_forward_of_ones_own_is_used() -> None:
    graph = trace(Residual(), {"image": image()}, forward=lambda m, batch: m(batch["image"])[:, :1])
    assert graph.operations[-1].target == "aten.slice.Tensor"


def test_models_without_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="run the model once"):
        trace(nn.LazyLinear(3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="Module"):
        trace(lambda x: x, image())  # type: ignore[arg-type]
