"""Taking the parts of a dropped task out of a model, so that it can be undone and redone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from taskprune.errors import PlanMismatchError
from taskprune.replace.absent import ABSENT, DroppedModule, none_for_absent
from taskprune.replace.replacement_record import ModuleReplacement

MODULE = "dropped_module"
"""A module that only a dropped task used becomes a :class:`DroppedModule`."""

PARAMETER = "dropped_parameter"
"""A parameter or buffer that only a dropped task used becomes :data:`ABSENT`."""

OUTPUTS = "dropped_outputs"
"""The model gets a hook that returns ``None`` for what is absent."""

KINDS = frozenset({MODULE, PARAMETER, OUTPUTS})


def take_out(
    model: nn.Module, replacements: Iterable[ModuleReplacement], undo: list[Callable[[], None]]
) -> None:
    """Take the named parts out of ``model`` itself; those already out stay out.

    Args:
        model: The model.
        replacements: Records of the kinds above.
        undo: Takes note of how to take back each change.

    Raises:
        PlanMismatchError: The model has no such module or parameter.
    """
    for replacement in replacements:
        if replacement.kind == MODULE:
            _take_module(model, replacement, undo)
        elif replacement.kind == PARAMETER:
            _take_parameter(model, replacement, undo)
        elif none_for_absent not in model._forward_hooks.values():
            undo.append(model.register_forward_hook(none_for_absent).remove)


def names_taken(model: nn.Module, replacements: Iterable[ModuleReplacement]) -> list[str]:
    """Return the names of the parameters in ``model`` that would be taken out."""
    paths = [r.path for r in replacements if r.kind in (MODULE, PARAMETER)]
    return [
        name
        for name, _ in model.named_parameters()
        if any(name == path or name.startswith(f"{path}.") for path in paths)
    ]


def _take_module(
    model: nn.Module, replacement: ModuleReplacement, undo: list[Callable[[], None]]
) -> None:
    try:
        module = model.get_submodule(replacement.path)
    except AttributeError as error:
        raise _mismatch(replacement, "a module") from error
    if isinstance(module, DroppedModule):
        return
    substitute = DroppedModule(replacement.detail)
    substitute.training = module.training
    # A module in several places is one module: all of them go.
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is module:
                undo.append(partial(parent._modules.__setitem__, name, child))
                parent._modules[name] = substitute


def _take_parameter(
    model: nn.Module, replacement: ModuleReplacement, undo: list[Callable[[], None]]
) -> None:
    path, _, name = replacement.path.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError as error:
        raise _mismatch(replacement, "a parameter") from error
    if vars(owner).get(name) is ABSENT:
        return
    for registry in (owner._parameters, owner._buffers):
        if name in registry:
            undo.append(_registrar(owner, registry, name))
            del registry[name]
            vars(owner)[name] = ABSENT
            return
    raise _mismatch(replacement, "a parameter")


def _mismatch(replacement: ModuleReplacement, what: str) -> PlanMismatchError:
    return PlanMismatchError(
        f"The plan drops a task whose `{replacement.path}` is {what}; this model has none there. "
        "Build the model with the arguments of the original."
    )


def _registrar(owner: nn.Module, registry: dict[str, Any], name: str) -> Callable[[], None]:
    # Parameters keep their order, which optimizers and state dicts follow.
    before = dict(registry)

    def put() -> None:
        vars(owner).pop(name, None)
        registry.clear()
        registry.update(before)

    return put
