"""Goes from nothing to an exported model with an installed wheel: ``python -I wheel_child.py``.

Arguments: the folder that the wheel is installed in, and the modules that there are beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT, *THERE = sys.argv[1:]
THERE += sys.stdlib_module_names


class OnlyThese(PathFinder):
    """Finds no module of a library that the wheel does not ask for."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = name.partition(".")[0]
        is_there = top in THERE or top.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if is_there else None


sys.path.insert(0, ROOT)
sys.meta_path[:] = [OnlyThese if found is PathFinder else found for found in sys.meta_path]

import taskprune  # noqa: E402
from taskprune.commands.app import app  # noqa: E402

assert Path(taskprune.__file__).is_relative_to(ROOT)
for command in (
    "init net.py",
    "inspect net.py",
    "prune net.py --ratio 0.5",
    "report runs/net",
    "verify net.py runs/net",
    "export net.py runs/net --out net.pt2",
):
    with suppress(SystemExit):
        app(command.split())
