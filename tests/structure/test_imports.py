"""The house as `docs/architecture.md` draws it: rooms, floors, and doors."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

import taskprune

PACKAGE = Path(__file__).parents[2] / "taskprune"

# A room may import from its own floor's rooms below it, never sideways or up.
FLOORS = (
    ("errors", "version", "restore"),
    ("calling", "files", "replace", "terminal"),
    ("graph", "promise"),
    ("coupling",),
    ("cost", "importance"),
    ("plan",),
    ("solver", "rewrite"),
    ("deployment", "compensation"),
    ("report", "allocation"),
    ("front",),
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
APART = ("distillation", "driving", "testing", "commands", "integrations")
DISTILLATION_MAY_IMPORT = {"calling", "errors", "files", "restore", "terminal"}


@dataclass(frozen=True)
class Import:
    """``name`` is imported from ``module`` by the file ``path``."""

    path: Path
    line: int
    module: str
    name: str

    @property
    def room(self) -> str:
        return self.module.split(".")[1] if "." in self.module else "__init__"

    def __str__(self) -> str:
        return f"{self.path.relative_to(PACKAGE)}:{self.line} imports {self.name} of {self.module}"


def files() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: relative import"
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, name in found:
            if module.split(".")[0] == "taskprune":
                yield Import(path, node.lineno, module, name)


def test_the_root_stays_small() -> None:
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py", "version.py"}


def test_every_room_has_its_floor() -> None:
    rooms = {room(path) for path in files()}
    assert rooms - {"compensation"} == (FLOOR.keys() | set(APART)) - {"compensation"}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    here = room(path)
    for found in imports(path):
        if here in FLOOR and found.room != here:
            if found.room == "distillation" and here == "front":
                continue
            assert found.room in FLOOR, f"{found}: the core is below it"
            assert FLOOR[found.room] < FLOOR[here], f"{found}: that lies above or beside"
        elif here == "distillation":
            assert found.room in DISTILLATION_MAY_IMPORT | {here}, f"{found}: it stands apart"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    modules = {_module(path) for path in files()}
    for path in files():
        if path.name != "__init__.py":
            for found in imports(path):
                for target in _defining(found, modules):
                    graph.add_edge(_module(path), target)
    circles = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    assert circles == []


def test_no_two_modules_of_the_core_share_a_name() -> None:
    names = Counter(p.stem for p in files() if p.stem != "__init__" and room(p) != "driving")
    assert [name for name, count in names.items() if count > 1] == []


def test_driving_imports_public_names_only() -> None:
    """Public is what the package, or one of its rooms, lists in ``__all__``."""
    for path in files():
        if room(path) != "driving":
            continue
        for found in imports(path):
            if found.room == "driving":
                continue
            assert found.module.count(".") <= 1, f"{found}: import it from its room"
            public = getattr(importlib.import_module(found.module), "__all__", ())
            is_whole = found.name == ""  # `import taskprune`
            assert is_whole or found.name in public or found.room == "errors", f"{found}: hidden"


def test_only_the_command_line_and_the_bundled_nets_import_driving() -> None:
    importers = {room(p) for p in files() for found in imports(p) if found.room == "driving"}
    assert importers <= {"driving", "commands"}


def test_every_module_has_a_docstring() -> None:
    assert [p for p in files() if not ast.get_docstring(ast.parse(p.read_text()))] == []


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _defining(found: Import, modules: set[str]) -> Iterator[str]:
    """Yield the file that a name comes from, looked up through the faces of rooms."""
    if f"{found.module}.{found.name}" in modules:
        yield f"{found.module}.{found.name}"
        return
    face = PACKAGE.parent.joinpath(*found.module.split("."), "__init__.py")
    if not face.exists():
        yield found.module
        return
    for behind in imports(face):
        if behind.name == found.name:
            yield from _defining(behind, modules)


def test_what_serves_one_file_is_imported_when_it_is_used() -> None:
    heavy = ["accelerate", "jinja2", "matplotlib", "networkx", "scipy", "torch_pruning", "typer"]
    code = f"import sys; from taskprune import *; print([m for m in {heavy} if m in sys.modules])"
    assert printed(code) == "[]"


def test_the_face_imports_nothing_before_it_is_used() -> None:
    loaded = printed("import sys, taskprune; print(*sys.modules)").split()
    ours = {module for module in loaded if module.split(".")[0] == "taskprune"}
    assert ours == {"taskprune", "taskprune.errors", "taskprune.version"}
    assert "torch" not in loaded


def test_every_public_name_is_the_one_that_type_checkers_see() -> None:
    seen = {found.name: found.module for found in imports(PACKAGE / "__init__.py")}
    assert seen.keys() == set(taskprune.__all__)
    assert seen.keys() <= set(dir(taskprune))
    code = (
        "import importlib, taskprune\n"
        f"for name, home in {seen}.items():\n"
        "    there = getattr(importlib.import_module(home), name)\n"
        "    print(name if getattr(taskprune, name) is not there else '', end='')"
    )
    assert printed(code) == ""


def test_rooms_are_attributes_and_unknown_names_are_not() -> None:
    assert printed("import taskprune; print(taskprune.plan.PruningPlan.__name__)") == "PruningPlan"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(taskprune, "nothing")  # noqa: B009


def printed(code: str) -> str:
    """Return what a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
