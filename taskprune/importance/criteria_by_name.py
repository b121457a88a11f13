"""Criteria by name: a file of ``importance/criteria`` each, and those that packages offer."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import TypeVar

from taskprune.errors import InputError
from taskprune.importance import criteria
from taskprune.importance.scores import Importance, ImportanceFactory

ENTRY_POINTS = "taskprune.importance"
"""Entry point group: the name is the criterion's, the object a factory without arguments."""

DEFAULT_CRITERION = "task_change"
"""Where there are tasks and nobody chose."""

_FACTORIES: dict[str, ImportanceFactory] = {}

Factory = TypeVar("Factory", bound=ImportanceFactory)


def criterion(factory: Factory) -> Factory:
    """Offer what a file of ``importance/criteria`` holds under the name of that file.

    Args:
        factory: A class or function to call without arguments.
    """
    _FACTORIES[factory.__module__.rpartition(".")[2]] = factory
    return factory


def built_in_names() -> tuple[str, ...]:
    """Return the names of the criteria that come with the package."""
    for file in iter_modules(criteria.__path__):
        _built_in(file.name)
    return tuple(sorted(_FACTORIES))


def importance_names() -> tuple[str, ...]:
    """Return the names that :func:`importance_by_name` knows, built-in ones first."""
    own = built_in_names()
    return (*own, *sorted(_offered().keys() - set(own)))


def importance_by_name(name: str) -> Importance:
    """Make a criterion with its default settings.

    Raises:
        InputError: Nobody offers one of this name; the message lists those there are. Or what a
            package offers cannot be imported or is no factory of criteria.
    """
    if name in {file.name for file in iter_modules(criteria.__path__)} and (own := _built_in(name)):
        return own()
    offered = _offered()
    if name not in offered:
        raise InputError(
            f"There is no importance criterion `{name}`. Expected one of "
            f"{', '.join(importance_names())}, or a callable (model, groups, evidence) -> scores."
        )
    return _made(offered[name])


def checked_criterion(importance: str | Importance) -> Importance:
    """Return the criterion of a name, or the one that was handed in.

    Raises:
        InputError: There is none of the name, or something else was handed in.
    """
    if isinstance(importance, str):
        return importance_by_name(importance)
    if isinstance(importance, type):
        name = importance.__name__
        raise InputError(
            f"`importance` must be a criterion. Found the class {name}: call it, "
            f"`importance={name}()`."
        )
    if not callable(importance):
        raise InputError(
            "`importance` must be the name of a criterion or a callable (model, groups, evidence) "
            f"-> scores. Found {type(importance).__name__}."
        )
    return importance


def _built_in(file: str) -> ImportanceFactory | None:
    """Import a file of criteria; return what it offers, ``None`` where that needs arguments."""
    import_module(f"{criteria.__name__}.{file}")
    return _FACTORIES.get(file)


def _made(point: EntryPoint) -> Importance:
    source = f"`{point.name} = {point.value}`"
    if point.dist is not None:
        source += f" of the package {point.dist.name}"
    try:
        factory: ImportanceFactory = point.load()
    except Exception as error:
        raise InputError(
            f"The criterion that entry point {source} offers cannot be imported: "
            f"{type(error).__name__}: {error}. Mend or remove the package, or choose another."
        ) from error
    try:
        return checked_criterion(factory())
    except Exception as error:
        raise InputError(
            f"Expected a function or class to call without arguments, which returns a criterion, "
            f"behind entry point {source}. That ended in {type(error).__name__}: {error}. A "
            "criterion that is a plain function is registered as a function that returns it."
        ) from error


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
