"""Records of a run, one JSON object a line, each with the step after which it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from taskprune.errors import CheckpointError, InputError, short
from taskprune.files.checked_json import MAX_BYTES, parse_json
from taskprune.files.writing import replacing, writing


class JsonLines:
    """Appends records to a file, and finds those again that a run goes on from.

    Args:
        path: The file; its folder must exist.
        step: Go on after this step: later records, written before a kill but after the last
            checkpoint, are cut off.
        digest: What :attr:`digest` was after that step, where it is known.

    Attributes:
        records: Those that were there already, without the ones that are cut off.

    Raises:
        CheckpointError: The part of the file up to ``step`` is damaged, or nothing can be written.
    """

    def __init__(self, path: Path, *, step: int = 0, digest: str | None = None) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._digest = hashlib.sha256()
        is_there = step > 0 and path.exists()
        lines = _read(path, step) if is_there else []
        self.records = [record for _, record in lines]
        for line, _ in lines:
            self._digest.update(line)
        if is_there and digest not in (None, self.digest):
            raise CheckpointError(
                f"`{path}` is not what was written up to step {step}: the checksum differs. Delete "
                "the file to go on without it."
            )
        with writing(path), replacing(path) as temporary:
            temporary.write_bytes(b"".join(line for line, _ in lines))

    @property
    def digest(self) -> str:
        """Checksum of all records, also of those that are still to be written."""
        return self._digest.hexdigest()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record, which has a ``step``; it reaches the file with the next :meth:`flush`."""
        line = json.dumps(record).encode("ascii") + b"\n"
        self._digest.update(line)
        self._waiting.append(line)
        if len(self._waiting) >= 20:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            CheckpointError: The disk is full or the file cannot be written.
        """
        if self._waiting:
            with writing(self._path), self._path.open("ab") as file:
                file.writelines(self._waiting)
            self._waiting = []


def _read(path: Path, step: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the lines up to a step, and what they say; what follows is not looked at."""
    found: list[tuple[bytes, dict[str, Any]]] = []
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_BYTES), b""), start=1):
            try:
                record = parse_json(line)
                if not isinstance(record, dict) or type(record.get("step")) is not int:
                    raise InputError(f"Expected an object with a `step`. Found {short(record)}.")
            except InputError as error:
                # A kill can leave half a line at the end, or the disk anything after a crash.
                if not line.endswith(b"\n") or (found and found[-1][1]["step"] >= step):
                    break
                raise CheckpointError(
                    f"Line {number} of `{path}` is no record of a run ({error}), though the "
                    f"checkpoint beside it is at step {step}. Delete the file to go on without it."
                ) from error
            if record["step"] > step:
                break
            found.append((line, record))
    return found
