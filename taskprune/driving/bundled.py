"""Weights of trained nets, from a clone or a distribution of their own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from taskprune.errors import MissingDependencyError

_Net = TypeVar("_Net")


def bundled_file(name: str) -> Any:
    """Return a file of ``taskprune/driving/weights``.

    Raises:
        MissingDependencyError: taskprune was installed without it.
    """
    file = resources.files("taskprune.driving") / "weights" / name
    if not file.is_file():
        raise MissingDependencyError(
            f"Expected trained weights at `{file}`. They are eight megabytes that most users do "
            "without, so they are not in the package itself. Install them with `pip install "
            "taskprune-driving-weights`, from a clone with `pip install "
            "./taskprune/driving/weights`, or pass a file of your own (`taskprune-driving train` "
            "makes one)."
        )
    return file


def load_or_bundled(load: Callable[[Path], _Net], weights: Path | str | None, name: str) -> _Net:
    """Load a net from the user's file, or from the bundled one of that name.

    Raises:
        MissingDependencyError: The bundled one is asked for, and was not installed.
    """
    if weights is not None:
        return load(Path(weights))
    with resources.as_file(bundled_file(name)) as path:
        return load(path)
