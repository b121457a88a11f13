"""Tables of text, and what rich shows as plain text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table


def text_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Collection[str] | None = None,
    caption: str | None = None,
) -> Table:
    """Return a table that keeps words on the left and numbers on the right of their columns.

    Args:
        title: What stands above it.
        headings: One a column.
        rows: A cell a column each.
        words: Headings of the columns that hold words; the first one alone by default.
        caption: What stands below it.
    """
    on_the_left = headings[:1] if words is None else words
    table = Table(title=title, title_justify="left", caption=caption)
    for heading in headings:
        table.add_column(
            heading,
            justify="left" if heading in on_the_left else "right",
            overflow="fold",  # names are worth nothing cut short
        )
    for row in rows:
        table.add_row(*row)
    return table


def plain_text(content: RenderableType, *, width: int = 100) -> str:
    """Return what rich would print as plain text of at most `width` columns."""
    console = Console(width=width, color_system=None, highlight=False, emoji=False, markup=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()
