"""Nothing in the core is too long to read at a sitting."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "taskprune"
LONGEST_FUNCTION = 80
"""Lines, docstring included."""
MOST_PARAMETERS = 12
LONGEST_FILE = 400


def core() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "driving")


def test_functions_are_short_and_take_few_parameters() -> None:
    too_long, too_many = [], []
    for path in core():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno >= LONGEST_FUNCTION:
                    too_long.append(f"{path.name}:{node.name}")
                if len(taken) > MOST_PARAMETERS:
                    too_many.append(f"{path.name}:{node.name}")
    assert (too_long, too_many) == ([], [])


def test_files_are_short() -> None:
    assert [p.name for p in core() if len(p.read_text().splitlines()) > LONGEST_FILE] == []
