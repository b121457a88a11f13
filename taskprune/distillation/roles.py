"""Roles: what parts of a model are called by the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from taskprune.errors import InputError, short

ATTRIBUTE = "taskprune_roles"


@dataclass(frozen=True)
class Role:
    """The modules that the model declares under one name, such as ``Role("backbone")``.

    A model says what its parts are in the attribute ``taskprune_roles``, on its class or on the
    object: module paths or patterns by role, those whose outputs are worth comparing, in the order
    in which they run. Nothing is read into the modules' own names.

    Example:
        >>> class Net(nn.Module):
        ...     taskprune_roles = {"backbone": ("layer3", "layer4"), "neck": ("fpn.out",)}
        >>> distill(student, teacher, taps=[Role("backbone")], tasks=tasks, data=data)

    Attributes:
        name: As the model declares it.
    """

    name: str


def declared_roles(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the module paths and patterns by role that a model declares; none if it does not.

    Args:
        model: Without wrappers around it.

    Raises:
        InputError: ``taskprune_roles`` is no mapping from names to paths.
    """
    found = getattr(model, ATTRIBUTE, {})
    if not isinstance(found, Mapping):
        raise _malformed(model, found)
    for role, paths in found.items():
        is_list = isinstance(paths, list | tuple) and len(paths) > 0
        if not (isinstance(role, str) and is_list and all(isinstance(p, str) for p in paths)):
            raise _malformed(model, {role: paths})
    return {role: tuple(paths) for role, paths in found.items()}


def modules_of_role(model: nn.Module, role: Role) -> tuple[str, ...]:
    """Return the paths and patterns of one role.

    Raises:
        InputError: The model declares no such role.
    """
    roles = declared_roles(model)
    if role.name in roles:
        return roles[role.name]
    has = f"the roles {', '.join(f'`{name}`' for name in roles)}" if roles else "no roles"
    raise InputError(
        f"{type(model).__name__} declares {has}. Found a tap on the role `{role.name}`. Choose "
        f"modules by path, pattern or type, or declare the role: `model.{ATTRIBUTE} = "
        f"{{{role.name!r}: ('path.of.module', ...)}}`."
    )


def _malformed(model: nn.Module, found: object) -> InputError:
    return InputError(
        f"`{type(model).__name__}.{ATTRIBUTE}` must map role names to a tuple of module paths or "
        f"patterns, such as `{{'backbone': ('layer3', 'layer4')}}`. Found {short(found)}."
    )
