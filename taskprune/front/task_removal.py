"""Dropping a whole task: :func:`drop_task` takes out its head and everything only it used."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward, Forwards
from taskprune.calling.inputs import model_inputs
from taskprune.calling.outputs import flatten_outputs
from taskprune.calling.task import Task, check_tasks
from taskprune.calling.wrappers import bare
from taskprune.cost import count_macs, count_params
from taskprune.coupling import couple
from taskprune.errors import (
    AbsentValueError,
    InputError,
    TaskPruneError,
    VerificationError,
)
from taskprune.graph import ModelGraph, tasks_reached, trace
from taskprune.importance import output_owners
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.replace import ModuleReplacement, dropping, replace_modules
from taskprune.replace.absent import ABSENT, DroppedModule, form_of
from taskprune.restore.borrow import entrusted
from taskprune.restore.modes import Mode, evaluating, set_mode_without_updates
from taskprune.restore.process import preserved_rng
from taskprune.rewrite.surgery import duplicate

_DROPPED, _OTHERS = "dropped", "others"
"""The two tasks that are left to tell apart."""


@dataclass(frozen=True, eq=False, repr=False)
class DropTaskResult:
    """What :func:`drop_task` returns.

    Attributes:
        model: The model without the task: same class, ``None`` where the task's outputs were.
        plan: What was taken out, as data: ``apply_plan`` redoes it, checkpoints carry it, and
            :func:`taskprune.plan.compose` joins it with a plan that prunes the result.
        tasks: Names of the dropped tasks.
        modules: Paths of the modules that went.
        parameters: Names of the parameters that went, those of the modules included.
    """

    model: nn.Module
    plan: PruningPlan
    tasks: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(f"`{name}`" for name in self.tasks)
        lines = [f"Dropped {names}: {len(self.parameters)} parameter tensors"]
        for cost, (before, after) in self.plan.costs.items():
            share = 1 - after / before if before else 0.0
            lines.append(f"  {cost}: {before:,} -> {after:,} (-{share:.1%})")
        lines += [f"  {path}" for path in self.modules]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"DropTaskResult({', '.join(self.tasks)}: {', '.join(self.modules)})"


def drop_task(
    model: nn.Module,
    tasks: Mapping[str, Task],
    dropped: str | Sequence[str],
    *,
    data: Iterable[Any] | None = None,
    example_inputs: Any = None,
    forward: Forwards | None = None,
) -> DropTaskResult:
    """Take a whole task, or several, out of a model: the heads, and everything only they used.

    What only the tasks use is read off the graph: the parameters from which no other output can be
    reached, declared by a task or not. Modules made of such parameters are replaced by ones that do
    nothing, so the model's own code runs on unchanged, and all other outputs stay equal to the bit.
    In place of the task's outputs the model returns ``None``.

    Args:
        model: Any module; it is left exactly as it was.
        tasks: The model's tasks by name.
        dropped: The task to drop. Tasks that share a decoder have to go together: name them all.
        data: Batches, of which one is used; needed where a task does not declare its outputs.
        example_inputs: A tensor, a tuple of arguments or a dict of keywords; in place of `data`.
        forward: ``(model, batch) -> outputs``, or several as in :func:`taskprune.prune`.

    Raises:
        InputError: There is no such task, none would be left, or nothing serves only those.
        AbsentValueError: Code outside of the task's modules needs a value only the task computes.
        VerificationError: Another output changed. Please report it; nothing was changed.
    """
    named = check_tasks(tasks)
    names = _checked_names(named, dropped)
    model = bare(model)
    with preserved_rng(), torch.inference_mode(False):
        without = duplicate(model)
        source = model_inputs(data, example_inputs, named, forward=forward)
        inputs, call = source.example, source.on_example
        owners = output_owners(model, named, inputs, forward=call)
        # Training as well where it runs on these inputs: a branch of its own goes too.
        traced = trace(model, inputs, forward=call, tasks=owners, modes="all")
        graph = _with_others(traced, names)
        private = _private(graph)
        if not private:
            paths = ", ".join(graph.tasks[_DROPPED])
            raise InputError(
                f"Nothing in the model serves {' and '.join(names)} alone: every parameter that "
                f"the outputs ({paths}) depend on is also used for others. Tasks that share all "
                "of a decoder have to go together: drop them in one call."
            )
        with entrusted(without):
            replacements = _Removal(without, inputs, call, private).find()
        replace_modules(without, replacements)
        _check_others_unchanged(model, without, inputs, call, graph.tasks[_OTHERS])
        kept = {task: paths for task, paths in owners.items() if task not in names}
        groups = couple(trace(without, inputs, forward=call, tasks=kept, modes="all"))
        before = couple(graph)
    plan = build_plan(
        groups,
        {},
        {
            "params": (count_params(before), count_params(groups)),
            "macs": (count_macs(before), count_macs(groups)),
        },
    )
    return DropTaskResult(
        model=without,
        plan=replace(plan, replacements=(*replacements, *groups.replacements)),
        tasks=names,
        modules=tuple(r.path for r in replacements if r.kind == dropping.MODULE),
        parameters=tuple(sorted(private)),
    )


def _checked_names(tasks: Mapping[str, Task], dropped: str | Sequence[str]) -> tuple[str, ...]:
    names = (dropped,) if isinstance(dropped, str) else tuple(dropped)
    unknown = [name for name in names if name not in tasks]
    if unknown or not names:
        found = f"`{unknown[0]}`" if unknown else "none"
        raise InputError(f"Expected tasks to drop among {', '.join(tasks)}. Found {found}.")
    if len(set(names)) == len(tasks):
        raise InputError("Expected at least one task to stay. Found all of them to be dropped.")
    return tuple(dict.fromkeys(names))


def _with_others(graph: ModelGraph, names: Collection[str]) -> ModelGraph:
    """Return the graph with two tasks: those to drop, and whatever else is returned."""
    kept = {path for task, paths in graph.tasks.items() if task not in names for path in paths}
    gone = {path for name in names for path in graph.tasks[name]}
    returned = dict.fromkeys(output.path for output in graph.outputs)
    others = tuple(path for path in returned if path not in gone or path in kept)
    return replace(
        graph, tasks={_DROPPED: tuple(p for p in returned if p in gone), _OTHERS: others}
    )


def _private(graph: ModelGraph) -> frozenset[str]:
    reached = tasks_reached(graph)
    return frozenset(p for p in graph.parameters if reached[p] == {_DROPPED})


class _Removal:
    """Works out which parts to take out, by running the model without them."""

    def __init__(
        self, model: nn.Module, inputs: Any, forward: Forward, private: frozenset[str]
    ) -> None:
        self.model, self.inputs, self.forward = model, inputs, forward
        self.private = private
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.forms = self._forms()

    def find(self) -> tuple[ModuleReplacement, ...]:
        """Return the replacements; the model is as before.

        Raises:
            AbsentValueError: The model cannot run without the task's values.
        """
        modules = self._private_modules()
        while True:
            replacements = self._replacements(modules)
            give_back = replace_modules(self.model, replacements)
            try:
                further = self._further()
            finally:
                give_back()
            if further is None:
                return replacements
            modules.append(further)

    def _private_modules(self) -> list[str]:
        """Return the outermost modules that run and hold nothing but the task's parameters."""
        found: list[str] = []
        for path, module in self.model.named_modules():
            names = [f"{path}.{name}" for name, _ in module.named_parameters()]
            inside = any(path.startswith(f"{outer}.") for outer in found)
            if path in self.forms and names and not inside and self.private.issuperset(names):
                found.append(path)
        return found

    def _replacements(self, modules: list[str]) -> tuple[ModuleReplacement, ...]:
        gone = tuple(f"{path}." for path in modules)
        loose = [name for name in sorted(self.private) if not name.startswith(gone)]
        return (
            *(
                ModuleReplacement(path, dropping.MODULE, json.dumps(self.forms[path]))
                for path in modules
            ),
            *(ModuleReplacement(name, dropping.PARAMETER) for name in loose),
            ModuleReplacement("", dropping.OUTPUTS),
        )

    def _forms(self) -> dict[str, dict[str, Any]]:
        """Run the model and return the form of what each of its modules returned, by mode."""
        forms: dict[str, dict[str, Any]] = {}

        def note(module: nn.Module, _args: Any, output: Any) -> None:
            mode = "train" if module.training else "eval"
            forms.setdefault(self.paths[id(module)], {})[mode] = form_of(output)

        with _hooked(self.model, after=note):
            for mode in ("train", "eval"):
                self._run(mode)
        forms.pop("", None)
        return forms

    def _further(self) -> str | None:
        """Run the model without the parts; return a module without parameters that must go too.

        A module that cannot cope with absence although it is only ever given absent tensors
        computes for the dropped task alone.
        """
        calls: dict[str, list[bool]] = {}

        def note(module: nn.Module, args: Any) -> None:
            path = self.paths.get(id(module), "")
            if path and not isinstance(module, DroppedModule):
                calls.setdefault(path, []).append(_is_absent(args))

        for mode in ("eval", "train"):
            with _hooked(self.model, before=note):
                try:
                    self._run(mode)
                except (AbsentValueError, TypeError, ValueError, RuntimeError):
                    always = [path for path, absent in calls.items() if all(absent)]
                    if not always:
                        raise
                    return always[0]
        return None

    def _run(self, mode: Mode) -> None:
        with evaluating(self.model), torch.no_grad():
            set_mode_without_updates(self.model, mode)
            try:
                self.forward(self.model, self.inputs)
            except TaskPruneError:
                raise
            except Exception:
                # Some models only train with targets.
                if mode == "eval":
                    raise


def _is_absent(args: Any) -> bool:
    tensors = [a for a in args if isinstance(a, Tensor) or a is ABSENT]
    return bool(tensors) and all(a is ABSENT for a in tensors)


@contextmanager
def _hooked(model: nn.Module, *, before: Any = None, after: Any = None) -> Iterator[None]:
    handles = []
    for module in model.modules():
        if before is not None:
            handles.append(module.register_forward_pre_hook(before))
        if after is not None:
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_others_unchanged(
    original: nn.Module, without: nn.Module, inputs: Any, forward: Forward, paths: tuple[str, ...]
) -> None:
    """Compare all other outputs, to the bit.

    Raises:
        VerificationError: One differs or is missing.
    """

    def outputs(model: nn.Module) -> dict[str, Tensor]:
        with entrusted(model), evaluating(model), torch.no_grad():
            torch.manual_seed(0)
            return flatten_outputs(forward(model, inputs))

    expected, found = outputs(original), outputs(without)
    for path in paths:
        if path not in expected:  # an output of training mode
            continue
        if path not in found or not _equal(expected[path], found[path]):
            raise VerificationError(
                f"Dropping the task changed the output `{path}`, which does not belong to it. "
                "Please report this model; it was left as it was."
            )


def _equal(expected: Tensor, found: Tensor) -> bool:
    """Return whether two tensors are alike to the bit, all kinds of NaN counting as one."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    both_nan = expected.isnan() & found.isnan()
    return bool(((expected == found) | both_nan).all())
