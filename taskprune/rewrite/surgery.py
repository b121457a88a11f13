"""Cutting tensors and storing integers, with an undo log."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from taskprune.errors import InputError, PlanMismatchError
from taskprune.plan.decisions import AttributeChange, KeptEntries
from taskprune.plan.plan import PruningPlan
from taskprune.replace import ModuleReplacement, replace_modules
from taskprune.restore.copying import deep_copy
from taskprune.rewrite.loading import Values


class UndoLog:
    """What to call, last first, to give a model back as it was."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(self, step: Callable[[], None]) -> None:
        """Remember how to take back a change that was just made."""
        self._steps.append(step)

    def roll_back(self) -> None:
        """Take back every change."""
        while self._steps:
            self._steps.pop()()


def cut(model: nn.Module, plan: PruningPlan, undo: UndoLog) -> None:
    """Carry out a plan that fits on ``model`` itself and remember how to take it back."""
    with torch.no_grad():
        shrink_tensors(named_tensors(model), plan.tensors, undo)
    store_attributes(model, plan.attributes, undo)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters, then all buffers, tied ones under their first name only."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter and buffer."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def duplicate(model: nn.Module, *, instead: Mapping[Tensor, Tensor] | None = None) -> nn.Module:
    """Return a deep copy.

    Args:
        model: Any module.
        instead: What the copy holds in place of copies of these parameters and buffers.

    Raises:
        InputError: The model holds something that cannot be copied.
    """
    try:
        return deep_copy(model, {id(own): other for own, other in (instead or {}).items()})
    except Exception as error:
        raise InputError(
            f"Expected a model that `copy.deepcopy` can copy. {type(error).__name__}: {error}. "
            "Remove what cannot be copied (open files, locks). Without a copy, only "
            "`apply_plan(..., inplace=True, verify=False)` works on a model itself."
        ) from error


def skeleton(model: nn.Module, replacements: Iterable[ModuleReplacement] = ()) -> nn.Module:
    """Return a deep copy that borrows the data of its parameters, with replacements in place.

    Whoever writes to its parameters writes to the model's; giving them other data is fine. Copying
    it would double the memory of a large model for nothing. Parameters of other classes than
    torch's own are copied.

    Raises:
        InputError: The model holds something that cannot be copied.
        PlanMismatchError: The model has nothing to replace where it should.
    """
    copied = duplicate(
        model,
        instead={
            parameter: nn.Parameter(parameter.data, parameter.requires_grad)
            for parameter in model.parameters()
            if type(parameter) is nn.Parameter
        },
    )
    replace_modules(copied, replacements)
    return copied


def give_own_memory(parameter: Tensor) -> None:
    """Copy what a parameter holds, and its gradient, out of the memory that it lies in."""
    grad = parameter.grad
    _set(parameter, parameter.data.clone(), None if grad is None else grad.detach().clone())


def copy_with(
    model: nn.Module, values: Values, replacements: Iterable[ModuleReplacement] = ()
) -> nn.Module:
    """Return a copy of its own, with replacements in place, whose tensors hold other values.

    Raises:
        InputError, PlanMismatchError: See :func:`skeleton`.
    """
    copied = skeleton(model, replacements)
    for name, tensor in named_tensors(copied).items():
        borrowed = tensor.data
        data = values(name, borrowed)
        tensor.data = data.clone() if data is borrowed else data
    return copied


def kept_entries_by_name(tensors: Iterable[KeptEntries]) -> dict[str, list[KeptEntries]]:
    """Gather the dims of each tensor that shrink."""
    by_name: dict[str, list[KeptEntries]] = {}
    for kept in tensors:
        by_name.setdefault(kept.name, []).append(kept)
    return by_name


def select(tensor: Tensor, kept: Iterable[KeptEntries]) -> Tensor:
    """Return a copy of ``tensor`` with the kept entries only, in the same memory format."""
    small = tensor
    # The slowest dim first: its entries are copied in one piece each.
    for entries in sorted(kept, key=lambda entries: entries.dim):
        index = torch.tensor(entries.keep, dtype=torch.int64, device=tensor.device)
        small = small.index_select(entries.dim, index)
    return small.contiguous(memory_format=memory_format(tensor))


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Return the format to keep: channels last where the tensor has it, else contiguous."""
    if not tensor.is_contiguous():
        for n_dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if tensor.ndim == n_dims and tensor.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format


def shrink_tensors(
    tensors: Mapping[str, Tensor], kept: Iterable[KeptEntries], undo: UndoLog
) -> None:
    """Replace the data of each named tensor by its kept entries.

    The tensor objects stay, so ties between modules, references of optimizers, subclasses and
    hooks survive. A gradient is cut along.
    """
    for name, dims in kept_entries_by_name(kept).items():
        tensor = tensors[name]
        if tensor.layout is not torch.strided:
            raise InputError(
                f"Expected dense tensors. `{name}` has layout {tensor.layout}; convert it first."
            )
        grad = tensor.grad if tensor.is_leaf else None
        undo.add(_restorer(tensor, tensor.data, grad))
        _set(
            tensor, select(tensor.data, dims), None if grad is None else select(grad.detach(), dims)
        )


def give_data(tensor: Tensor, data: Tensor, undo: UndoLog) -> None:
    """Let a tensor hold other data of the same shape; the gradient stays."""
    grad = tensor.grad if tensor.is_leaf else None
    undo.add(_restorer(tensor, tensor.data, grad))
    _set(tensor, data, grad)


def _restorer(tensor: Tensor, data: Tensor, grad: Tensor | None) -> Callable[[], None]:
    return lambda: _set(tensor, data, grad)


def _set(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    # A gradient must fit the data at all times, so it goes first and comes last.
    if tensor.is_leaf:
        tensor.grad = None
    if tensor.requires_grad:
        # What accumulates the gradient knows the old shape, and lives as long as a graph of the
        # tensor does. torch makes a new one for data of another dtype, though not of another shape.
        other = torch.float32 if data.dtype == torch.float64 else torch.float64
        tensor.data = data.new_empty(0, dtype=other)
    tensor.data = data
    if grad is not None:
        tensor.grad = grad


def store_attributes(model: nn.Module, changes: Iterable[AttributeChange], undo: UndoLog) -> None:
    """Store the plan's integers in their modules.

    Raises:
        PlanMismatchError: A module or attribute does not exist, or holds something else.
    """
    changes = tuple(changes)
    holders = _holders(model) if any(len(change.path) > 1 for change in changes) else {}
    for change in changes:
        where = f"`{change.module or type(model).__name__}`, path {list(change.path)}"
        copies: list[tuple[Any, Any]] = []
        try:
            module = model.get_submodule(change.module)
            old = getattr(module, str(change.path[0]))
            new = _replaced(old, change.path[1:], change.value, copies)
            _store(module, str(change.path[0]), new, undo)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise PlanMismatchError(
                f"The plan stores {change.value} in {where}, which this model lacks: {error}. "
                "Build the model with the arguments of the original."
            ) from error
        # Modules that share a container or a configuration go on sharing it.
        for shared, copied in copies:
            holders[id(copied)] = (copied, held := holders.get(id(shared), (shared, []))[1])
            for holder, name in held:
                if vars(holder).get(name) is shared:
                    _store(holder, name, copied, undo)


def _holders(model: nn.Module) -> dict[int, tuple[Any, list[tuple[nn.Module, str]]]]:
    """Map the id of each object that modules store to the object and those who store it."""
    holders: dict[int, tuple[Any, list[tuple[nn.Module, str]]]] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            holders.setdefault(id(value), (value, []))[1].append((module, name))
    return holders


def _store(module: nn.Module, name: str, value: Any, undo: UndoLog) -> None:
    had_own = name in vars(module)
    old = vars(module).get(name)

    def restore() -> None:
        if had_own:
            setattr(module, name, old)
        else:
            with suppress(AttributeError):
                delattr(module, name)

    setattr(module, name, value)
    undo.add(restore)


def _replaced(
    old: Any, path: tuple[str | int, ...], value: int, copies: list[tuple[Any, Any]]
) -> Any:
    """Return ``old`` with the integer at ``path`` replaced; containers are copied, not changed.

    Takes note of each copied object and its copy, but of no tuple: equal ones may be one object.
    """
    if not path:
        if not isinstance(old, int) or isinstance(old, bool):
            raise TypeError(f"expected an integer there, found {old!r}")
        return value
    key, rest = path[0], path[1:]
    if isinstance(old, tuple):
        items = list(old)
        items[int(key)] = _replaced(items[int(key)], rest, value, copies)
        return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
    changed = copy.copy(old)
    copies.append((old, changed))
    if isinstance(old, list | Mapping):
        changed[key] = _replaced(changed[key], rest, value, copies)
    else:
        # A configuration object, perhaps a frozen dataclass.
        inner = _replaced(getattr(old, str(key)), rest, value, copies)
        object.__setattr__(changed, str(key), inner)
    return changed
