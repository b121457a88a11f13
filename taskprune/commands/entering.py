"""How a model enters the command line: a file of Python, a factory, or a name in a library."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from taskprune.calling.forward import Forward, call_batch, call_inputs
from taskprune.calling.task import Task
from taskprune.commands.stock_models import STOCK, stock_model
from taskprune.errors import InputError, TaskPruneError
from taskprune.restore import evaluating

PARTS = ("model", "data", "tasks", "validation", "example")
"""Functions of a file that are called without arguments; `model` alone must be there."""

_entered: dict[str, Path] = {}
"""Files that were run as modules, by the modules' names."""


@dataclass(frozen=True, eq=False)
class Source:
    """Where a model and what belongs to it come from; nothing is made before it is asked for.

    Attributes:
        reference: What the user wrote.
        name: What files about it are called.
        parts: What makes each of :data:`PARTS` that there is.
        forward: ``(model, batch) -> outputs``; ``None`` for the convention.
        draw: ``({name: model}) -> {caption: PNG or JPEG file}``, if there is something to show.
        note: What to know about where it comes from; empty if nothing.
    """

    reference: str
    name: str
    parts: Mapping[str, Callable[[], Any]]
    forward: Forward | None = None
    draw: Callable[[dict[str, nn.Module]], Any] | None = None
    note: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """Return the model, made anew in each call, from the same seed.

        Raises:
            InputError: Making it fails, or makes something else.
        """
        model = self._called("model")
        if not isinstance(model, nn.Module):
            raise InputError(
                f"Expected a `torch.nn.Module` from `model` of `{self.reference}`. Found "
                f"{type(model).__name__}."
            )
        return model

    def data(self) -> Any:
        """Return the batches to calibrate and train on, or ``None``."""
        return self._part("data")

    def tasks(self) -> Mapping[str, Task] | None:
        """Return the tasks, or ``None`` where every output is one."""
        found: Mapping[str, Task] | None = self._part("tasks")
        return found

    def validation(self) -> Iterable[Any] | None:
        """Return the batches to measure metrics on; ``None`` where no task has a metric."""
        watched = any(task.metric is not None for task in (self.tasks() or {}).values())
        found: Iterable[Any] | None = self._part("validation") if watched else None
        return found

    def example(self) -> Any:
        """Return what the model will be called with, ``None`` where that is a batch of the data."""
        return self._part("example")

    def pictures(self, models: dict[str, nn.Module]) -> Any:
        """Return pictures of what models do, by caption; none where nothing draws them.

        Raises:
            InputError: Drawing fails.
        """
        if self.draw is None:
            return {}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for model in models.values():
                stack.enter_context(evaluating(model))
            try:
                return self.draw(models)
            except Exception as error:
                raise _failed(f"`pictures()` of `{self.reference}`", error) from error

    def needed(self, part: str, why: str) -> Any:
        """Return a part.

        Raises:
            InputError: There is none; says what it is needed for.
        """
        found = getattr(self, part)()
        if found is None:
            raise InputError(
                f"{why} takes `{part}()`, which `{self.reference}` does not have. `taskprune init` "
                "writes a file that shows what it looks like."
            )
        return found

    def inputs(self) -> tuple[Any, Forward]:
        """Return what to run the model on and how it reaches the model.

        Raises:
            InputError: There is neither an example nor data.
        """
        example = self.example()
        if example is not None:
            return example, self.forward or call_inputs
        data = self.needed("data", "Running the model")
        batches = next(iter(data.values())) if isinstance(data, Mapping) else data
        for batch in batches:
            return batch, self.forward or call_batch
        raise InputError(f"`data()` of `{self.reference}` holds no batch.")

    def _part(self, name: str) -> Any:
        """Return a part, made once."""
        if name not in self.made:
            self.made[name] = self._called(name) if name in self.parts else None
        return self.made[name]

    def _called(self, name: str) -> Any:
        # Weights that nobody loads are drawn: commands must agree on them.
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - what user's code draws from
        torch.manual_seed(0)
        try:
            return self.parts[name]()
        except TaskPruneError:
            raise
        except Exception as error:
            raise _failed(f"`{name}()` of `{self.reference}`", error) from error


def enter(reference: str) -> Source:
    """Find out where a model comes from.

    Args:
        reference: ``net.py`` or ``net.py:factory``, ``package.module:factory``, or a name in a
            library: ``timm:resnet50``, ``hf:folder``, ``ultralytics:yolo11n.yaml``.

    Raises:
        InputError: It is none of these, or is not there.
        MissingDependencyError: The library is not installed.
    """
    kind, colon, name = reference.partition(":")
    if colon and kind in STOCK:
        stock = stock_model(kind, name)
        parts = {"model": stock.make, "example": stock.example}
        return Source(reference, Path(name).stem or kind, parts, note=stock.note)
    place, _, factory = reference.rpartition(":") if ":" in reference else (reference, "", "model")
    path = Path(place)
    if path.suffix == ".py":
        module = _run(path)
    elif ":" in reference and all(part.isidentifier() for part in place.split(".")):
        module = _imported(place)
    else:
        raise InputError(
            f"Expected a model: a file such as `net.py` (`taskprune init net.py` writes one), "
            f"`package.module:factory`, {', '.join(f'`{k}:…`' for k in STOCK)}. Found "
            f"`{reference}`."
        )
    makers = {"model": getattr(module, factory, None)}
    makers |= {part: getattr(module, part, None) for part in PARTS[1:]}
    if not callable(makers["model"]):
        raise InputError(
            f"Expected a function `{factory}()` in `{place}` that returns the model. Found "
            f"{'none' if makers['model'] is None else type(makers['model']).__name__}."
        )
    given = {part: make for part, make in makers.items() if make is not None}
    called = {part: getattr(module, part, None) for part in ("forward", "pictures")}
    there = given | {part: make for part, make in called.items() if make is not None}
    if odd := [part for part, make in there.items() if not callable(make)]:
        raise InputError(
            f"Expected a function `{odd[0]}()` in `{place}`. Found {type(there[odd[0]]).__name__}."
        )
    name = path.stem if path.suffix == ".py" else place.rpartition(".")[2]
    return Source(reference, name, given, called["forward"], called["pictures"])


def _run(path: Path) -> ModuleType:
    """Run a file as a module of its name, beside which it finds its neighbours."""
    if not path.is_file():
        raise InputError(
            f"Expected a file at `{path}`. There is none. `taskprune init {path}` writes one to "
            "begin with."
        )
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None and path.stem not in _entered:
        raise InputError(
            f"`{path.name}` has the name of a module that is in use: {path.stem}. Give the file "
            "another one."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # By its name, so that processes that load data find it.
    sys.modules[path.stem] = module
    _entered[path.stem] = path
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except TaskPruneError:
        raise
    except Exception as error:
        raise _failed(f"`{path.name}`", error) from error
    return module


def _imported(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"Expected a module `{name}`. There is none that Python finds from `{Path.cwd()}`."
            ) from error
        raise _failed(f"Importing `{name}`", error) from error
    except Exception as error:
        raise _failed(f"Importing `{name}`", error) from error


def _failed(what: str, error: Exception) -> InputError:
    """Return the error of code that is the user's, with the line where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parents[1]), sys.prefix, sys.base_prefix, "<")
    last = [f for f in frames if not f.filename.startswith(ours)] or frames
    text = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    return InputError(
        f"{what} failed: {reason} ({Path(last[-1].filename).name}:{last[-1].lineno}). `--debug` "
        "shows all of it."
    )
