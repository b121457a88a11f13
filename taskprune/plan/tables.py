"""A plan as people read it: a table, a line, and channels as ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from taskprune.cost.names import amount, cost_label
from taskprune.plan.decisions import GroupDecision

Costs = Mapping[str, tuple[int, int]]

_RANGE = re.compile(r"\d{1,18}(-\d{1,18})?", re.ASCII)


def plan_summary(groups: Sequence[GroupDecision], costs: Costs) -> str:
    """Return one line: how many channels go, and what that saves."""
    n_channels = sum(decision.n_channels for decision in groups)
    n_dropped = sum(len(decision.drop) for decision in groups)
    n_touched = sum(bool(decision.drop) for decision in groups)
    parts = [
        f"drops {n_dropped:,} of {n_channels:,} channels, in {n_touched} of {len(groups)} groups"
    ]
    for cost, (before, after) in costs.items():
        saved = f" (-{1 - after / before:.1%})" if before else ""
        if cost == "latency_ns":
            text = f"{amount(cost, before)} to {amount(cost, after)}"
        else:
            text = f"{before:,} to {after:,}"
        parts.append(f"{cost_label(cost)} {text}{saved}")
    return "; ".join(parts)


def plan_table(groups: Sequence[GroupDecision], costs: Costs) -> Group:
    """Return the summary and a table with one row per group, in order of first use."""
    table = Table()
    table.add_column("group", overflow="fold")
    for heading in ("kept", "of", "dropped"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("tasks", overflow="fold")
    has_modalities = any(decision.modality for decision in groups)
    if has_modalities:
        table.add_column("modality", overflow="fold")
    for decision in groups:
        share = len(decision.drop) / decision.n_channels
        table.add_row(
            decision.name,
            str(decision.n_kept),
            str(decision.n_channels),
            f"{share:.0%}" if decision.drop else "-",
            ", ".join(decision.tasks),
            *([decision.modality] if has_modalities else []),
        )
    return Group(Text(plan_summary(groups, costs)), table)


def ranges_text(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ``"0-3 7"``."""
    if not numbers:
        return ""
    array = np.asarray(numbers, dtype=np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1)
    starts = array[np.concatenate([[0], breaks + 1])].tolist()
    ends = array[np.concatenate([breaks, [len(array) - 1]])].tolist()
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def numbers_in(ranges: str, size: int, *, most: int) -> tuple[int, ...]:
    """Read what :func:`ranges_text` wrote.

    Args:
        ranges: Such as ``"0-3 7"``.
        size: What all numbers are below.
        most: How many numbers there may be.

    Raises:
        ValueError: The text is none of that.
    """
    numbers: list[int] = []
    last = -1
    for part in (match[0] for match in re.finditer(r"\S+", ranges)):
        if not _RANGE.fullmatch(part):
            raise ValueError(f"Found {part[:40]!r}")
        start, _, end = part.partition("-")
        first, until = int(start), int(end or start)
        if not last < first <= until < size:
            raise ValueError(f"Found {part} after {last}")
        if len(numbers) + until - first >= most:
            raise ValueError(f"Found more than {most:,} in all")
        numbers.extend(range(first, until + 1))
        last = until
    return tuple(numbers)
