"""What commands print, for people or for machines; without torch, which takes seconds to come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


def show(parts: Sequence[RenderableType], record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what a command has found, for people or for machines."""
    if as_json:
        typer.echo(json.dumps(record, indent=2, default=str))
    else:
        Console(highlight=False).print(Group(*parts))


def next_steps(lines: Iterable[tuple[str, str]]) -> RenderableType:
    """What to do with it: commands, and what for."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ignore", style="bold")  # to be copied
    table.add_column()
    for command, what in lines:
        table.add_row(Text(command), Text(what))
    return Group(Text("Next:"), table)
