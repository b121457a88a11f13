"""When callbacks prune."""

from __future__ import annotations

from taskprune.errors import InputError, short


def check_when(step: int | None, epoch: int | None) -> None:
    """Check that it is said when to prune.

    Raises:
        InputError: Not one of the two is given, or it is no whole number from 1 on.
    """
    given = [when for when in (step, epoch) if when is not None]
    counts = [when for when in given if type(when) is int and when >= 1]
    if len(given) != 1 or not counts:
        raise InputError(
            "Say when to prune: after how many steps or epochs, one of both, counted from 1. Found "
            f"step={short(step)}, epoch={short(epoch)}."
        )
