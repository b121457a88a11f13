"""Files that come with the package: weights of trained nets, and how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from taskprune.errors import CheckpointError

_Net = TypeVar("_Net")


def bundled_file(name: str) -> Any:
    """Return a file of ``taskprune/driving/weights``."""
    return resources.files("taskprune.driving") / "weights" / name


def load_or_bundled(load: Callable[[Path], _Net], weights: Path | str | None, name: str) -> _Net:
    """Load a net from the user's file, or from the bundled one of that name."""
    if weights is not None:
        return load(Path(weights))
    with resources.as_file(bundled_file(name)) as path:
        return load(path)


def bundled_card(name: str) -> dict[str, Any]:
    """Return how a bundled net was made and what it scores on unseen scenes.

    Raises:
        CheckpointError: The card is missing or damaged.
    """
    card = bundled_file(name)
    try:
        return dict(json.loads(card.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{card}` must be the teacher's card in JSON. Reading it failed: {error}. Install "
            "taskprune again."
        ) from error
