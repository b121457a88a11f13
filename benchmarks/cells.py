"""The cells of a benchmark, one JSON object a line, kept as they are measured.

A benchmark of many hours asks for a cell by its key (such as images, arm and seed), measures it if
it is not there, and appends it. What is stopped goes on where it was. The files are part of the
repository, so a long benchmark can go on in another checkout, and every row of a table can be
traced to the cells it comes from and the commit that measured each of them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol import RESULTS

from taskprune.errors import InputError

Cell = dict[str, Any]


class Cells:
    """The cells of one benchmark, in ``results/cells/<name>.jsonl``.

    The file is committed. It is read anew at every question, so cells that another process
    appends meanwhile count as well. A last line that was cut off, because its writer was killed,
    is as if it had never been written.

    Args:
        name: Of the file, without suffix.
        folder: Where the file is, for trials whose cells nobody should keep.
    """

    def __init__(self, name: str, folder: Path = RESULTS / "cells") -> None:
        self.path = folder / f"{name}.jsonl"
        # Asked before anything is measured: a checkout may move on during a long run.
        self._commit = commit()

    def all(self) -> list[Cell]:
        """Return all cells, oldest first.

        Raises:
            InputError: A line other than the last is no JSON object.
        """
        return [self._parsed(number, line) for number, line in enumerate(self._lines(), 1)]

    def matching(self, key: Mapping[str, Any]) -> list[Cell]:
        """Return the cells that hold every entry of the key, oldest first."""
        return [cell for cell in self.all() if key.items() <= cell.items()]

    def has(self, key: Mapping[str, Any]) -> bool:
        """Return whether a cell holds every entry of the key."""
        return bool(self.matching(key))

    def append(self, cell: Mapping[str, Any]) -> None:
        """Write a cell, and as its ``commit`` the short revision of this checkout.

        The commit is ``null`` where git or its history is absent.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._mend_end()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**cell, "commit": self._commit}) + "\n")

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        *lines, rest = content.split(b"\n")
        if _is_whole(rest):
            lines.append(rest)
        return [line.decode("utf-8") for line in lines]

    def _mend_end(self) -> None:
        """Let the file end with a whole line, so that the next one starts a line of its own."""
        if not self.path.exists():
            return
        rest = self.path.read_bytes().rpartition(b"\n")[2]
        with self.path.open("ab") as file:
            if _is_whole(rest):
                file.write(b"\n")
            elif rest:
                file.truncate(file.tell() - len(rest))

    def _parsed(self, number: int, line: str) -> Cell:
        try:
            cell = json.loads(line)
        except json.JSONDecodeError:
            cell = None
        if not isinstance(cell, dict):
            raise InputError(
                f"Expected a JSON object in line {number} of `{self.path}`. Found {line[:40]!r}. "
                "Remove the line; its cell will be measured again."
            )
        return cell


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # JSON or UTF-8 that breaks off
        return False


def commit() -> str | None:
    """Return the short git revision of this checkout; ``None`` where there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
