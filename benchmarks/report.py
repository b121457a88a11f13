"""Write the tables and pictures of the pages from the files in benchmarks/results.

    python benchmarks/report.py

Nobody types a number: text between ``<!-- results: NAME -->`` and ``<!-- end -->`` is replaced by
what is made of ``results/NAME.json``, or says that it is not there yet.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import cost_tables
import quality_tables
import robustness_tables
import speed_tables
import training_tables
from markdown_tables import IMAGES, View

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)

VIEWS: dict[str, View] = {
    **quality_tables.VIEWS,
    **cost_tables.VIEWS,
    **robustness_tables.VIEWS,
    **speed_tables.VIEWS,
    **training_tables.VIEWS,
}
"""What is made of ``results/NAME.json`` or ``results/NAME_VARIANT.json``."""

PICTURES = ("frontier", "scaling", "speed", "time_to_quality")
"""Results that ``NAME_plot.py`` draws as ``NAME.png``."""


def table(name: str) -> str:
    """Return what a page shows of one results file: ``NAME``, ``NAME_VARIANT`` or ``NAME.VIEW``."""
    file, _, view = name.partition(".")
    path = RESULTS / f"{file}.json"
    if not path.exists():
        return "*Not measured yet.*"
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = file if file in VIEWS else file.partition("_")[0]
    return VIEWS[f"{kind}.{view}" if view else kind](content)


def rendered(text: str) -> str:
    """Return a page with all marked parts made anew."""
    return MARKED.sub(lambda match: match[1] + table(match[2]) + "\n<!-- end -->", text)


def draw() -> None:
    """Draw the pictures of the pages."""
    for name in ("distillation", *PICTURES):
        path = RESULTS / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            plot = import_module(f"{name}_plot")  # Matplotlib, an extra
            if name in PICTURES:
                plot.draw(content, IMAGES / f"{name}.png")
                continue
            for on, picture in quality_tables.plots(content).items():
                plot.draw([row for row in content["arms"] if row["on"] == on], picture)


def main() -> None:
    draw()
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
