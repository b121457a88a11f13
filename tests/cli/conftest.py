"""A folder of a user's own, and a process that remembers nothing of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskprune.commands import entering


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which files of Python are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in {*entering._entered, "package", "package.nets"} & (set(sys.modules) - before):
        del sys.modules[name]
    entering._entered.clear()
