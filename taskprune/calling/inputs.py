"""What ``prune`` runs the model on: the batches of a loader, or example inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from operator import length_hint
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from taskprune.calling.forward import Forward, Forwards, call_batch, call_inputs, one_forward
from taskprune.calling.task import Task
from taskprune.errors import InputError, short


@dataclass(frozen=True, eq=False, slots=True)
class TaskBatch:
    """A batch from a task's own loader: it has labels of that task alone."""

    task: str
    batch: Any


def task_batches(
    loaders: Mapping[str, Iterable[Any]], n_batches: int | None = None
) -> Iterator[TaskBatch]:
    """Go through each task's own loader in turn, a batch of each, until all are at their end.

    Args:
        loaders: ``{task: batches}``.
        n_batches: How many of each loader at most.
    """
    waiting = {task: iter(islice(loader, n_batches)) for task, loader in loaders.items()}
    while waiting:
        for task in tuple(waiting):
            for batch in waiting[task]:
                yield TaskBatch(task, batch)
                break
            else:
                del waiting[task]


class Remembered:
    """Batches to be gone through once, of which the first are kept.

    Args:
        batches: Any iterable; an iterator as well.
        most: How many to keep at most.
    """

    def __init__(self, batches: Iterable[Any], most: int) -> None:
        self._rest, self._most = iter(batches), most
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self._rest:
            if len(self._seen) < self._most:
                self._seen.append(batch)
            yield batch

    def kept(self) -> list[Any]:
        """Return the first that were gone through; where none were, the first there are."""
        return self._seen or list(islice(self, self._most))


def check_loaders(
    data: Mapping[str, Iterable[Any]], tasks: Mapping[str, Task]
) -> Mapping[str, Iterable[Any]]:
    """Return ``data`` if it holds batches for each of the tasks.

    Raises:
        InputError: The names are not those of the tasks, or something does not yield batches.
    """
    if set(data) != set(tasks):
        raise InputError(
            "`data` must yield batches, or be a dict with a loader for each task. Found one of "
            f"{_names(data)}, and the tasks are {_names(tasks)}. A single batch goes into a list: "
            "`[batch]`."
        )
    for loader in data.values():
        _check_data(loader)
    return data


def _names(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(f"`{name}`" for name in mapping) or "none"


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What to run the model on.

    Attributes:
        example: What to trace, time and verify on: the example inputs, or else the first batch.
        batches: All batches, the first included, or those of each task's own loader by its name;
            ``None`` without data.
        n_batches: How many of them will be used; 0 if that is not known.
        forward: How a batch reaches the model.
        on_example: How the example does.
        task_examples: The first batch of each task's own loader; empty where they share one.
    """

    example: Any
    batches: Iterable[Any] | None
    n_batches: int
    forward: Forward
    on_example: Forward
    task_examples: Mapping[str, Any] = field(default_factory=dict)

    def count(self, done: int) -> str:
        """Say how many batches are done."""
        return f"{done}{f' of {self.n_batches}' if self.n_batches else ''} batches done"


def model_inputs(
    data: Iterable[Any] | Mapping[str, Iterable[Any]] | None,
    example_inputs: Any,
    tasks: Mapping[str, Task],
    *,
    forward: Forwards | None = None,
    n_batches: int | None = None,
) -> ModelInputs:
    """Work out what to run a model on, and refuse what cannot be right.

    Args:
        data: Calibration batches; gone through once, by whoever iterates over the result. Or a
            loader for each task by its name.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords, in place of `data`; or
            beside it, as the example of the shape that the model will run on.
        tasks: The tasks by name.
        forward: ``(model, batch) -> outputs``. Default: the convention for either form.
        n_batches: How many batches will be asked for at most.

    Raises:
        InputError: Neither is given, the data is of another form or empty, or without data a task
            does not say which outputs it owns.
    """
    if data is None and example_inputs is None:
        raise InputError(
            "Expected calibration `data`, or `example_inputs` (a tensor, a tuple of arguments or "
            "a dict of keyword arguments) for a criterion that needs no data. Found neither."
        )
    forward = one_forward(forward)
    if data is None:
        _check_outputs_declared(tasks)
        call = forward or call_inputs
        return ModelInputs(example_inputs, None, 0, call, call)
    if n_batches is not None and not (isinstance(n_batches, int) and n_batches >= 1):
        raise InputError(
            f"`n_batches` must be at least 1, or None for all. Found {short(n_batches)}."
        )
    found = _of_data(data, tasks, forward or call_batch, n_batches)
    if example_inputs is None:
        return found
    return replace(found, example=example_inputs, on_example=forward or call_inputs)


def _of_data(
    data: Iterable[Any] | Mapping[str, Iterable[Any]],
    tasks: Mapping[str, Task],
    forward: Forward,
    n_batches: int | None,
) -> ModelInputs:
    if isinstance(data, Mapping):
        return _own_loaders(check_loaders(data, tasks), forward, n_batches)
    _check_data(data)
    # One pass only: an iterator has no second, and a shuffling loader would draw anew.
    remaining = iter(data)
    for first in remaining:
        used = min(length_hint(data), n_batches or sys.maxsize)
        return ModelInputs(first, chain([first], remaining), used, forward, forward)
    raise InputError(
        "`data` holds no batch. Expected at least one. Is the loader empty, or an iterator that "
        "was gone through before?"
    )


def _own_loaders(
    loaders: Mapping[str, Iterable[Any]], forward: Forward, n_batches: int | None
) -> ModelInputs:
    parts = {task: _of_data(own, {}, forward, n_batches) for task, own in loaders.items()}
    examples = {task: part.example for task, part in parts.items()}
    return ModelInputs(
        example=next(iter(examples.values())),
        batches={task: part.batches or () for task, part in parts.items()},
        n_batches=sum(part.n_batches for part in parts.values()),
        forward=forward,
        on_example=forward,
        task_examples=examples,
    )


def _check_data(data: object) -> None:
    found = ""
    if isinstance(data, Tensor):
        found = "a tensor, which yields single samples: pass a list of batches such as `[tensor]`"
    elif isinstance(data, Mapping | str):
        found = f"a {type(data).__name__}: pass a list of batches such as `[batch]`"
    elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        found = (
            f"the data set {type(data).__name__}, which yields single samples: wrap it in a "
            "`DataLoader`"
        )
    elif not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        found = f"{type(data).__name__}, which cannot be iterated over"
    if found:
        raise InputError(f"`data` must yield batches, as a `DataLoader` does. Found {found}.")


def _check_outputs_declared(tasks: Mapping[str, Task]) -> None:
    for name, task in tasks.items():
        if task.outputs is None:
            raise InputError(
                f"Which outputs task `{name}` owns is found from its loss, which takes `data`. "
                "Found none. Pass `data=`, or declare them: Task(loss=..., outputs='path')."
            )
