"""Tables of text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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
