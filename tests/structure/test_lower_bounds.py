"""Lower bounds are versions that `make lowest` tests, not guesses."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_lower_bounds_are_the_versions_that_are_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = project[: project.index("\ndev = [")]  # tools for development are not for users
    bounds = dict(re.findall(r'"([\w-]+)>=([\w.]+)"', project))
    assert bounds.pop("hatchling")
    lowest = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    tested = dict(re.findall(r"^([\w-]+)==([\w.]+)$", lowest, flags=re.MULTILINE))
    assert {name: _padded(version) for name, version in bounds.items()} == {
        name: _padded(version) for name, version in tested.items()
    }


def _padded(version: str) -> list[int]:
    return [*map(int, version.split(".")), 0, 0][:3]
