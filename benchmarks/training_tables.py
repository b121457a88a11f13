"""Tables of what is left of every task after all is done, and of how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markdown_tables import Picture, View, markdown, with_spread


def paper_table(content: dict[str, Any]) -> str:
    """Return a table a set of images: what was asked, the paper's student, and all of ours."""
    rows, settings = content["rows"], content["settings"]
    columns = list(settings["asked"])
    tables = []
    for on in dict.fromkeys(row["on"] for row in rows):
        here = [row for row in rows if row["on"] == on]
        teacher = here[0]["teacher"]
        lines = [
            ["teacher, points", "100 %", "100 %", "1 ×", "", *_points(teacher, columns, "{:.1f}")],
            ["the paper's student", *_of_the_paper(settings, columns)],
        ]
        lines += [_line(row, columns) for row in here]
        asked = [f"≥ {_signed(settings['asked'][column])}" for column in columns]
        lines.append(["**asked**", "", "", f"≥ {settings['asked times faster']} ×", "", *asked])
        headings = [on, "parameters left", "MACs left", "as fast", "seeds", *columns]
        tables.append(markdown(headings, lines))
    return "\n\n".join(tables)


def _line(row: dict[str, Any], columns: Sequence[str]) -> list[str]:
    faster = row["times faster"]
    return [
        row["row"] + (f", {row['steps']} steps" if row["steps"] else ""),
        *(f"{100 * row['left'][cost]:.1f} %" for cost in ("params", "macs")),
        f"{faster:.2f} ×" if faster else "",
        str(row["seeds"]),
        *(_with_spread(row["change"][column]) for column in columns),
    ]


def _of_the_paper(settings: dict[str, Any], columns: Sequence[str]) -> list[str]:
    published = settings["published"]
    left, faster = settings["published left"], settings["published times faster"]
    changes = [_signed(published[name]) if name in published else "negligible" for name in columns]
    return [f"{100 * left:.1f} %", "", f"{faster:.2f} ×", "", *changes]


def _points(figures: dict[str, float], columns: Sequence[str], form: str) -> list[str]:
    return [form.format(figures[column]) for column in columns]


def _with_spread(figure: Sequence[float | None]) -> str:
    return with_spread(figure, "{:+.1f}").replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def time_table(content: dict[str, Any]) -> str:
    """Return when each way was good enough, and what the worst task had lost before and after."""
    limit = content["settings"]["limit"]
    lines = []
    for row in content["rows"]:
        seconds = row["seconds"]
        reached = f"{row['good enough']} of {row['seeds']}"
        lines.append(
            [
                row["network"],
                row["way"],
                reached,
                f"{seconds:.0f} s" if seconds is not None else f"not within {limit:.0f} s",
                f"{row['pruning seconds']:.0f} s",
                _signed(row["at once"]),
                _signed(row["at the end"]),
                f"{row['steps']:.0f}",
            ]
        )
    headings = ["network", "way", "seeds that get there", "processor time", "of it pruning"]
    return markdown(
        [*headings, "worst task after pruning", "at the end", "steps of training"], lines
    )


VIEWS: dict[str, View] = {
    "paper": paper_table,
    "time_to_quality": time_table,
    "time_to_quality.picture": Picture(
        "time_to_quality", "Change of the worst task, in points, over processor seconds"
    ),
}
"""What is made of ``results/NAME.json`` or ``results/NAME_VARIANT.json``."""
