"""Where a frontier keeps its points, so that a run that was stopped goes on.

Each point is a checkpoint like any other, with what was measured of it as its metadata. A sealed
file beside them holds what the run is and what was measured of the original.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from taskprune.errors import CheckpointError, InputError, short
from taskprune.files import (
    as_record,
    clear_unfinished,
    parse_json,
    read_bytes,
    sealed,
    unsealed,
    write_text,
)
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite.checkpoint import read_header, save_checkpoint
from taskprune.solver.budget import Budget
from taskprune.version import __version__

FORMAT = "taskprune.frontier/1"
"""Name and version of what the folder holds."""

FILE_NAME = "frontier.json"
"""The file that says what the run is."""


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        params: Parameters.
        macs: Multiply-adds of one sample.
        metrics: By task.
        latency_ms: Milliseconds of a forward of the original and of this model, in turn.

    Raises:
        InputError: Of a file: a size or a time that cannot be.
    """

    params: int
    macs: int
    metrics: Mapping[str, float]
    latency_ms: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        times = (1.0, 1.0) if self.latency_ms is None else self.latency_ms
        if min(self.params, self.macs) < 0 or not all(0 < time < math.inf for time in times):
            raise InputError(
                f"Expected sizes and times above zero. Found {self.params:,} parameters, "
                f"{self.macs:,} multiply-adds and {times} ms."
            )


@dataclass(frozen=True)
class _Run:
    """What the folder's own file holds."""

    format: str
    version: str
    identity: Mapping[str, Any]
    original: Measured


@dataclass(frozen=True)
class _Point:
    """What the metadata of a point's checkpoint holds."""

    run: str
    bounds: Mapping[str, float]
    measured: Measured


class PointFolder:
    """The files of one frontier; only who holds the folder's lock may use it.

    Args:
        folder: Exists and can be written to.
        identity: What must agree for a run to go on; what JSON can hold.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(identity))
        text = json.dumps(self.identity, sort_keys=True)
        self._run = hashlib.sha256(text.encode("ascii")).hexdigest()

    def original(self) -> Measured | None:
        """Return what was measured of the original, ``None`` in a new folder.

        Raises:
            CheckpointError: The file is damaged, or of another run; says in what it differs.
        """
        path = self.folder / FILE_NAME
        clear_unfinished(path)
        if not path.exists():
            return None
        try:
            found = as_record(_Run, unsealed(parse_json(read_bytes(path))), "the file")
            if found.format != FORMAT:
                raise InputError(f"Expected the format {FORMAT!r}. Found {short(found.format)}.")
        except (OSError, InputError) as error:
            raise CheckpointError(
                f"`{path}` is damaged, or no file of a frontier. {error} Choose another "
                "`directory`, or delete the file to start anew."
            ) from error
        self._check(path, found.identity)
        return found.original

    def begin(self, original: Measured) -> None:
        """Write what the run is.

        Raises:
            CheckpointError: The file cannot be written.
        """
        run = asdict(_Run(FORMAT, __version__, self.identity, original))
        write_text(self.folder / FILE_NAME, json.dumps(sealed(run), indent=1) + "\n")

    def path_of(self, budget: Budget) -> Path:
        """Return the file of the point that keeps to a budget."""
        name = re.sub(r"[^a-z0-9.]+", "-", str(budget).replace("%", "percent").lower())
        return self.folder / f"{name}.safetensors"

    def point(self, budget: Budget) -> tuple[Measured, PruningPlan] | None:
        """Return what was measured of a point and its plan; ``None`` where it is still to come.

        Raises:
            CheckpointError: The file is damaged, or of another run or budget.
        """
        path = self.path_of(budget)
        clear_unfinished(path)
        if not path.exists():
            return None
        header = read_header(path)
        try:
            point = as_record(_Point, header.metadata, "what was measured of the point")
            if point.run != self._run or point.bounds != _bounds(budget):
                raise InputError(f"It was made for other settings, and to {short(point.bounds)}.")
        except InputError as error:
            raise CheckpointError(
                f"`{path}` is no point of this frontier. {error} Choose another `directory`, or "
                "delete the file."
            ) from error
        return point.measured, header.plan

    def keep(self, budget: Budget, model: nn.Module, plan: PruningPlan, measured: Measured) -> Path:
        """Write a point.

        Raises:
            CheckpointError: It cannot be written.
        """
        path = self.path_of(budget)
        point = asdict(_Point(self._run, _bounds(budget), measured))
        save_checkpoint(path, model, plan, metadata=point)
        return path

    def _check(self, path: Path, found: Mapping[str, Any]) -> None:
        for name, value in self.identity.items():
            if found.get(name) != value:
                was = short(found[name]) if name in found else "not recorded"
                raise CheckpointError(
                    f"`{path}` belongs to another frontier: `{name}` was {was} and now is "
                    f"{short(value)}. Choose another `directory`, or delete the folder to start "
                    "anew."
                )


def _bounds(budget: Budget) -> dict[str, float]:
    return {name: float(bound) for name, bound in budget.bounds.items()}
