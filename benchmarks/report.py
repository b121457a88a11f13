"""Write the tables of README.md and docs/results.md from the files in benchmarks/results.

    python benchmarks/report.py

Nobody types a number: text between ``<!-- results: NAME -->`` and ``<!-- end -->`` is replaced by
what is made of ``results/NAME.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)

HEADLINES = {"detection": ("map50", "recall"), "drivable": ("miou",), "lane": ("iou", "accuracy")}
LABELS = {
    "map50": "mAP50",
    "recall": "recall",
    "miou": "mIoU",
    "iou": "IoU",
    "accuracy": "accuracy",
}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    lines = [headings, [":--"] + ["--:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def demo_table(content: dict[str, Any]) -> str:
    """Return teacher, pruned and distilled side by side: size, speed and every task."""
    metrics, costs = content["metrics"], content["prune"]["costs"]
    columns = [(task, name) for task, names in HEADLINES.items() for name in names]
    rows = []
    for model in ("teacher", "pruned", "distilled"):
        after = int(model != "teacher")
        latency = {"teacher": "teacher", "distilled": "student"}.get(model)
        rows.append(
            [
                model,
                f"{costs['params'][after] / 1e6:.2f} M",
                f"{costs['macs'][after] / 1e6:.0f} M",
                f"{content['latency_ms'][latency]['median_ms']:.1f} ms" if latency else "",
                *(f"{100 * metrics[model][task][name]:.1f}" for task, name in columns),
            ]
        )
    headings = ["", "parameters", "MACs", "latency"]
    return markdown(headings + [f"{task} {LABELS[name]}" for task, name in columns], rows)


def criteria_table(content: dict[str, Any]) -> str:
    """Return the comparison of importance criteria, one row per criterion and ratio."""
    rows = content["rows"]
    columns = [c for c in rows[0] if c not in ("criterion", "ratio") and not c.endswith("±")]
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            spread = row.get(f"{column} ±")
            cells.append(f"{row[column]:.1f}" + (f" ± {spread:.1f}" if spread is not None else ""))
        lines.append([row["criterion"], f"{100 * row['ratio']:.1f} %", *cells])
    return markdown(["criterion", "parameters removed", *columns], lines)


def table(name: str) -> str:
    """Return the table made of one results file."""
    content = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return demo_table(content) if "metrics" in content else criteria_table(content)


def rendered(text: str) -> str:
    """Return a page with all marked parts made anew."""
    return MARKED.sub(lambda match: match[1] + table(match[2]) + "\n<!-- end -->", text)


def main() -> None:
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
