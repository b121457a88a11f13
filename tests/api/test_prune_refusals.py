"""Bad input gives an error that says what to do, and leaves the model as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from front_nets import (
    Batch,
    Plain,
    TwoTaskNet,
    batches,
    images,
    kind_loss,
    map_loss,
    settled,
    two_task_net,
    two_tasks,
    worn,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import taskprune
from taskprune import Budget, Task, TaskPruneError
from taskprune.errors import (
    CheckpointError,
    InfeasibleBudgetError,
    InputError,
    LossError,
    TraceError,
    UnsupportedOperatorError,
    VerificationError,
)
from taskprune.importance import TaskTaylorImportance
from taskprune.testing import unchanged

NAN = float("nan")


class OneChannelEach(nn.Module):
    """Two tasks on layers that are as thin as they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.map = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 1, 1)
        self.kind = nn.Linear(1, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"kind": self.kind(x.mean((2, 3))), "map": self.map(x)}


def refusal(
    error: type[Exception], net: nn.Module | None = None, /, *arguments: Any, **keywords: Any
) -> str:
    """Prune, expect an error, check that nothing changed, and return the message."""
    model = worn(two_task_net()) if net is None else net
    tasks, *rest = arguments or (two_tasks(),)
    if not {"data", "example_inputs"} & keywords.keys():
        keywords["data"] = batches(2)
    if not rest and "budget" not in keywords:
        keywords.setdefault("ratio", 0.3)
    with unchanged(model), pytest.raises(error) as caught:
        taskprune.prune(model, tasks, *rest, **settled(keywords))
    assert isinstance(caught.value, TaskPruneError)
    return str(caught.value)


def assert_says(message: str, *words: str) -> None:
    missing = [word for word in words if word not in message]
    assert missing == [], message


# -- how much --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 0.0, 1, 1.0, -0.3, 1.5, 30, NAN, float("inf"), "0.3", True])
def test_a_ratio_must_lie_between_0_and_1(ratio: Any) -> None:
    assert_says(
        refusal(InputError, ratio=ratio),
        "fraction of the parameters to remove",
        "between 0 and 1",
        f"Found {ratio!r}",
    )


def test_numbers_of_numpy_are_numbers() -> None:
    for ratio in (np.float32(0.25), np.float64(0.25)):
        result = taskprune.prune(
            Plain(), None, ratio, example_inputs=images(2), importance="magnitude"
        )
        assert result.report.removed("params") >= 0.25


def test_a_ratio_out_of_reach_names_the_largest_that_can_be_reached() -> None:
    message = refusal(InfeasibleBudgetError, ratio=0.97)
    assert_says(message, "cannot be met", "smallest reachable model", "which removes", "safety=")
    reachable = float(message.split("which removes ")[1].split("%")[0]) / 100
    result = taskprune.prune(two_task_net(), two_tasks(), reachable - 0.001, data=batches(2))
    assert result.report.removed("params") <= reachable + 1e-4


@pytest.mark.parametrize("importance", ["task_taylor", "cosprune"])
@pytest.mark.parametrize("how", ["protected", "thin"])
def test_tasks_without_channels_to_remove_are_told_why(how: str, importance: str) -> None:
    net = two_task_net() if how == "protected" else OneChannelEach()
    message = refusal(
        InfeasibleBudgetError,
        net,
        importance=importance,
        protect=["*"] if how == "protected" else (),
    )
    assert_says(message, "removes 0.00%")


def test_a_net_without_channels_to_remove_says_why() -> None:
    assert_says(
        refusal(
            InfeasibleBudgetError, nn.Linear(4, 2), None, 0.3,
            example_inputs=torch.zeros(2, 4), importance="magnitude",
        ),
        "removes 0.00%", "output",
    )  # fmt: skip


def test_ratio_and_budget_exclude_each_other() -> None:
    assert_says(refusal(InputError, ratio=0.3, budget=Budget(macs=0.5)), "either", "Found both")
    assert_says(refusal(InputError, budget=None), "ratio=0.3", "Found neither")


def test_budget_and_safety_are_records() -> None:
    assert_says(refusal(InputError, budget=0.5), "Budget(params=", "Found 0.5")
    assert_says(refusal(InputError, safety=0.5), "Safety(", "Found 0.5")


# -- the losses ------------------------------------------------------------------------------------


def failing(outputs: Any, batch: Any) -> Tensor:
    raise KeyError("boxes")


LOSSES: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "per sample": (lambda o, _b: o["kind"].sum(1), ("shape (8,)", ".mean()")),
    "nan": (lambda o, _b: o["kind"].sum() * NAN, ("nan", "labels")),
    "number": (lambda o, _b: o["kind"].sum().item(), ("a float", ".item()")),
    "detached": (lambda o, _b: o["kind"].detach().sum(), ("without a gradient", ".detach()")),
    "raises": (failing, ("KeyError", "boxes", "loss(outputs, batch)")),
    "silent": (lambda _o, _b: None, ("no labels", "Pass batches that hold labels")),
    "another's": (
        lambda _o, _b: torch.ones((), requires_grad=True) * 2,
        ("does not depend on any parameter", "from the model's outputs"),
    ),
}


@pytest.mark.parametrize(("loss", "words"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_loss_names_its_task(
    loss: Callable[[Any, Any], Any], words: tuple[str, ...]
) -> None:
    tasks = {"map": Task(map_loss, outputs="map"), "odd": Task(loss, outputs="kind")}
    assert_says(refusal(LossError, None, tasks), "task `odd`", "batch", *words)


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES.values()], ids=LOSSES)
def test_so_does_one_whose_outputs_have_to_be_found(loss: Callable[[Any, Any], Any]) -> None:
    tasks = {"map": Task(map_loss), "odd": Task(loss)}
    assert_says(refusal(LossError, None, tasks), "ask `odd`")


def test_a_loss_that_fails_on_a_later_batch_names_it() -> None:
    def late(outputs: Any, batch: Batch) -> Tensor:
        return kind_loss(outputs, batch) * (NAN if batch[0].mean() > 100 else 1)

    first, second, third = batches(3)
    broken = (third[0] + 1000, *third[1:])
    tasks = {"kind": Task(late, outputs="kind")}
    assert_says(
        refusal(LossError, None, tasks, data=[first, second, broken]), "calibration batch 3"
    )


# -- the tasks -------------------------------------------------------------------------------------


def test_tasks_must_be_a_mapping_of_tasks() -> None:
    assert_says(refusal(InputError, None, [Task(kind_loss)]), "`tasks` must map", "Task(loss=")
    assert_says(refusal(InputError, None, {}), "at least one", "Found an empty dict")
    assert_says(refusal(InputError, None, {"kind": kind_loss}), "`Task` objects", "'kind'")


def test_an_output_that_does_not_exist_lists_those_that_do() -> None:
    tasks = {"kind": Task(kind_loss, outputs="klass")}
    assert_says(refusal(InputError, None, tasks), "klass", "kind", "map")


def test_a_gradient_criterion_without_tasks_says_what_to_do() -> None:
    message = refusal(InputError, None, None, example_inputs=images(2), importance="task_taylor")
    assert_says(message, "needs the tasks' losses", "importance='magnitude'")


def test_pruning_without_tasks_and_without_data_says_what_to_do() -> None:
    message = refusal(InputError, None, None, example_inputs=images(2))
    assert_says(message, "looks at outputs", "pass `data=`", "importance='magnitude'")


def test_outputs_can_only_be_found_from_data() -> None:
    tasks = {"kind": Task(kind_loss)}
    message = refusal(InputError, None, tasks, example_inputs=images(2), importance="magnitude")
    assert_says(message, "task `kind`", "outputs='path'", "`data=`")


def test_a_gradient_criterion_without_data_says_what_to_do() -> None:
    assert_says(refusal(InputError, example_inputs=images(2)), "pass `data=`")


# -- the data --------------------------------------------------------------------------------------


def used_up() -> Iterator[Any]:
    iterator = iter(batches(1))
    next(iterator)
    return iterator


@pytest.mark.parametrize(
    "data",
    [[], (), used_up(), DataLoader([])],  # type: ignore[arg-type]
    ids=["list", "tuple", "iterator", "loader"],
)
def test_an_empty_loader_is_refused(data: Any) -> None:
    assert_says(refusal(InputError, data=data), "holds no batch", "at least one")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (images(4), ("a tensor", "[tensor]")),
        ({"x": images(4)}, ("dict", "[batch]")),
        (TensorDataset(images(4)), ("TensorDataset", "DataLoader")),
        (7, ("int", "cannot be iterated over")),
        (True, ("bool", "cannot be iterated over")),
    ],
    ids=["tensor", "dict", "data set", "number", "flag"],
)
def test_data_must_be_batches(data: Any, words: tuple[str, ...]) -> None:
    assert_says(refusal(InputError, data=data), "must yield batches", *words)


def test_without_data_and_example_inputs_nothing_can_run() -> None:
    assert_says(refusal(InputError, data=None), "calibration `data`", "Found neither")


@pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
def test_the_number_of_batches_is_a_count(n: Any) -> None:
    assert_says(refusal(InputError, n_batches=n), "`n_batches` must be at least 1", repr(n))


def test_a_batch_that_the_model_rejects_is_named() -> None:
    wrong = [(torch.zeros(2, 5, 8, 8), torch.zeros(2))]
    assert_says(refusal(TraceError, data=wrong), "RuntimeError", "channels", "forward=")
    late = [*batches(2), *wrong]
    assert_says(refusal(TraceError, data=late), "calibration batch 3", "forward=")


def test_a_batch_of_unknown_form_asks_for_a_forward() -> None:
    class Sample:
        pixels = images(2)

    assert_says(refusal(InputError, data=[Sample()]), "Sample", "forward=lambda")


def test_example_inputs_that_the_model_rejects_are_named() -> None:
    message = refusal(
        TraceError, Plain(), None, 0.3, example_inputs={"y": images(2)}, importance="magnitude"
    )
    assert_says(message, "example inputs", "TypeError", "'y'")


def test_an_error_of_the_loader_comes_through_unchanged() -> None:
    class Unlucky:
        def __iter__(self) -> Iterator[Batch]:
            yield from batches(1)
            raise OSError("disk on fire")

    net = worn(two_task_net())
    with unchanged(net), pytest.raises(OSError, match="disk on fire"):
        taskprune.prune(net, two_tasks(), 0.3, data=Unlucky())


# -- the model -------------------------------------------------------------------------------------


def test_only_modules_can_be_pruned() -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module.*Found function"):
        taskprune.prune(two_task_net, None, 0.3, example_inputs=images(2))  # type: ignore[arg-type]


def test_a_model_without_values_cannot_be_pruned() -> None:
    with torch.device("meta"):
        net = TwoTaskNet()
    with pytest.raises(InputError, match=r"`stem\.weight` is on the meta device.*to_empty"):
        taskprune.prune(net, None, 0.3, example_inputs=images(2), importance="magnitude")


def test_a_lazy_model_has_to_run_first() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyConv2d(2, 3))
    with pytest.raises(InputError, match=r"lazy"):
        taskprune.prune(net, None, 0.3, example_inputs=images(2), importance="magnitude")


def test_a_model_that_cannot_be_copied_is_refused_before_it_is_scored() -> None:
    net = two_task_net()
    vars(net)["lock"] = threading.Lock()
    scored: list[int] = []

    def watching(model: nn.Module, groups: Any, evidence: Any) -> Any:
        scored.append(1)
        return {group.name: torch.arange(float(group.n_channels)) for group in groups}

    with pytest.raises(InputError, match=r"deepcopy"):
        taskprune.prune(net, None, 0.3, example_inputs=images(2), importance=watching)
    assert scored == []


def test_an_unknown_operator_is_refused_in_strict_mode() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

        def forward(self, x: Tensor) -> Any:
            return self.b(torch.special.bessel_j1(self.a(x)))

    message = refusal(
        UnsupportedOperatorError, Odd(), None, 0.3,
        example_inputs=images(2), importance="magnitude", strict=True,
    )  # fmt: skip
    assert_says(message, "bessel_j1")


def test_a_protected_module_that_does_not_exist_is_named() -> None:
    assert_says(refusal(InputError, protect=["steem"]), "steem")


@pytest.mark.parametrize("protect", [3, [3], [nn.ReLU()], [int]])
def test_protect_takes_names_and_types(protect: Any) -> None:
    assert_says(refusal(InputError, protect=protect), "`protect`", "names", "types")


def test_a_model_without_parameters_is_refused() -> None:
    message = refusal(
        InputError, nn.Identity(), None, 0.3, example_inputs=images(1), importance="magnitude"
    )
    assert_says(message, "parameters", "Identity has none")


def test_forward_must_be_a_function() -> None:
    assert_says(refusal(InputError, forward="forward"), "`forward`", "(model, batch)", "str")


# -- the criterion ---------------------------------------------------------------------------------


def test_an_unknown_criterion_lists_those_there_are() -> None:
    def never(_model: nn.Module, _batch: Any) -> Any:
        raise AssertionError("the model ran")

    message = refusal(InputError, importance="taylorr", forward=never)
    assert_says(message, "`taylorr`", "task_taylor", "magnitude", "callable")


def test_a_class_of_criteria_is_refused_before_the_model_runs() -> None:
    def never(_model: nn.Module, _batch: Any) -> Any:
        raise AssertionError("the model ran")

    message = refusal(InputError, importance=TaskTaylorImportance, forward=never)
    assert_says(message, "class TaskTaylorImportance", "call it")


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (3, ("callable", "int")),
        (lambda _model, _groups, _evidence: None, ("NoneType", "mapping")),
        (lambda _model, _groups, _evidence: {}, ("no scores for group",)),
        (
            lambda _model, groups, _evidence: {g.name: torch.zeros(3) for g in groups},
            ("shape (1, 3)", "channels"),
        ),
        (
            lambda _model, groups, _evidence: {
                g.name: torch.full((g.n_channels,), NAN) for g in groups
            },
            ("not finite", "protect="),
        ),
    ],
    ids=["number", "nothing", "empty", "too few", "nan"],
)
def test_a_criterion_must_return_scores(criterion: Any, words: tuple[str, ...]) -> None:
    assert_says(refusal(InputError, importance=criterion), *words)


# -- where a rewrite would be wrong ----------------------------------------------------------------


def test_a_model_that_would_behave_differently_is_not_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong rule is simulated: one tensor is cut at other channels than the plan says."""
    from taskprune.rewrite import apply
    from taskprune.rewrite.surgery import cut

    def wrong_cut(model: nn.Module, plan: Any, undo: Any) -> None:
        cut(model, plan, undo)
        with torch.no_grad():
            next(model.parameters()).add_(0.1)

    monkeypatch.setattr(apply, "cut", wrong_cut)
    assert_says(refusal(VerificationError), "must equal the original", "protect=", "report")


# -- files -----------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named(tmp_path: Any) -> None:
    path = tmp_path / "small.safetensors"
    result = taskprune.prune(two_task_net(), two_tasks(), 0.3, data=batches(1))
    taskprune.save_checkpoint(path, result.model, result.plan)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-4] + b"\0\1\2\3", b"", b"nothing"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"small\.safetensors"):
            taskprune.load_checkpoint(path, TwoTaskNet)
