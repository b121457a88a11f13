"""Files that come with the package: weights of trained nets, and how they were made."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from taskprune.errors import CheckpointError


def bundled_file(name: str) -> Any:
    """Return a file of ``taskprune/driving/weights``."""
    return resources.files("taskprune.driving") / "weights" / name


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
