"""Tables in Markdown, from what benchmarks have written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

PAGES = Path(__file__).parents[1] / "docs"
IMAGES = PAGES / "images"

View: TypeAlias = Callable[[dict[str, Any]], str]
"""Makes text of what a file of results holds."""


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    lines = [headings, [":--"] + ["--:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Columns:
    """A table with a row for each of some records, and their figures as text.

    Attributes:
        cells: Headings, each with a format of the record's figures, such as ``"{seconds:.1f} s"``.
        records: Where the records are in the file.
    """

    cells: Sequence[tuple[str, str]]
    records: str = "rows"

    def __call__(self, content: dict[str, Any]) -> str:
        """Return the table."""
        rows = [[form.format_map(row) for _, form in self.cells] for row in content[self.records]]
        return markdown([heading for heading, _ in self.cells], rows)


@dataclass(frozen=True)
class Picture:
    """The picture of a benchmark, which ``report.py`` draws.

    Attributes:
        name: Of the benchmark.
        shows: What is seen.
    """

    name: str
    shows: str

    def __call__(self, _content: dict[str, Any]) -> str:
        """Return the picture."""
        return f"![{self.shows}]({IMAGES.relative_to(PAGES) / self.name}.png)"


def with_spread(figure: Sequence[float | None], form: str) -> str:
    """Return a mean and its spread as text; nothing where there is none."""
    mean, spread = figure
    if mean is None:
        return ""
    return form.format(mean) + (f" ± {form.format(spread).lstrip('+')}" if spread else "")


def first_word(outcome: dict[str, Any]) -> str:
    """Return how something ended, without what was said of it."""
    return str(outcome["outcome"]).partition(":")[0]
