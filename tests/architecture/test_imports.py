"""Imports point downwards only, and the core knows nothing of driving."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "taskprune"

# A module may import from its own layer and those before it.
LAYERS = (
    (
        "version",
        "errors",
        "atomic_file",
        "output_places",
        "autocast",
        "multiples",
        "rng",
        "denormals",
        "garbage",
        "lending",
        "meta",
        "wrappers",
    ),
    ("forward", "tasks", "modality", "tolerances", "progress", "inputs", "outputs", "replace"),
    ("graph",),
    ("coupling",),
    ("importance", "cost", "rationale", "explanation", "plan", "plan_tables", "composition"),
    ("budget", "safety", "loss_budget", "solver", "rewrite"),
    (
        "checkpoint",
        "latency",
        "modality_report",
        "report",
        "report_making",
        "html_report",
        "result",
    ),
    ("schedule", "iterative"),
    ("api", "task_removal"),
    ("compression",),
)
CORE = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
DISTILLATION_MAY_IMPORT = {
    "autocast",
    "distillation",
    "errors",
    "forward",
    "lending",
    "output_places",
    "outputs",
    "tasks",
    "progress",
    "rng",
    "wrappers",
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"taskprune.{alias.name}" for alias in node.names]
                if node.module == "taskprune"
                else [node.module]
            )
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("taskprune."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    for target, line in imported_rooms(path):
        where = f"{path.name}:{line} imports taskprune.{target}"
        if room(path) in CORE:
            if target == "distillation" and room(path) in ("api", "compression", "iterative"):
                continue
            assert target in CORE, f"{where}: the core is below it"
            assert CORE[target] <= CORE[room(path)], f"{where}: that lies above"
        elif room(path) == "distillation":
            assert target in DISTILLATION_MAY_IMPORT, f"{where}: distillation stands apart"


def test_only_the_command_line_and_the_bundled_nets_import_driving() -> None:
    importers = {
        room(p) for p in modules() for target, _ in imported_rooms(p) if target == "driving"
    }
    assert importers <= {"driving", "cli"}


def test_every_module_has_a_docstring() -> None:
    missing = [
        p
        for p in modules()
        if p.name != "__init__.py" and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert missing == []
