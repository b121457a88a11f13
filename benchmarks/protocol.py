"""What every benchmark records, and how it shows and stores its rows."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import taskprune

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, Any]


def record(name: str, content: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json``: the content, and what it was measured with."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    script = Path(sys.argv[0]).name
    circumstances = {
        "command": " ".join(
            ["python", f"benchmarks/{script}", *map(_without_folder, sys.argv[1:])]
        ),
        "versions": {
            "taskprune": taskprune.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    text = json.dumps({**circumstances, **content}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _without_folder(argument: str) -> str:
    """Return a path's last part: where somebody keeps data is nobody else's business."""
    return Path(argument).name if "/" in argument else argument


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table; the first row's keys are the columns."""
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        table.add_column(key, justify="left" if isinstance(rows[0][key], str) else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in rows[0]))
    Console(width=140).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
