"""What commands write and read again: the folder of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from taskprune.calling.task import Task
from taskprune.commands.entering import Source
from taskprune.errors import InputError
from taskprune.files import make_folder, only_user_of, parse_json, read_bytes
from taskprune.plan.plan import PruningPlan
from taskprune.report.record import PruneReport
from taskprune.rewrite.checkpoint import load_checkpoint, save_checkpoint
from taskprune.terminal import text_table

MODEL, PLAN, REPORT, PAGE = "model.safetensors", "plan.json", "report.json", "report.html"
"""Weights and plan, the plan alone, all figures, and the page for a browser."""

POINTS = "points"
"""Folder of a frontier's models, which later runs go on with."""

TRAINING = "training"
"""Folder of a training that goes on where it was interrupted."""


@contextmanager
def claimed(folder: Path, *, force: bool) -> Iterator[Path]:
    """Make the folder of a run and keep others out, or refuse one that holds another's results.

    Raises:
        InputError: There are results in it, it cannot be made, or another run writes to it.
    """
    there = [name for name in (MODEL, PLAN, REPORT, PAGE) if (folder / name).exists()]
    if there and not force:
        raise InputError(
            f"`{folder}` holds what an earlier run has written ({', '.join(there)}). Choose "
            "another folder with `--out`, or replace it with `--force`."
        )
    make_folder(folder, option="`--out`")
    with only_user_of(folder, option="`--out`"):
        if force:
            shutil.rmtree(folder / TRAINING, ignore_errors=True)
        yield folder


def checkpoint_in(path: Path) -> Path:
    """Return the checkpoint that a folder or file stands for.

    Raises:
        InputError: There is none.
    """
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"Expected the folder of a run, with `{MODEL}`, or such a file. Found none at "
            f"`{path}`. `taskprune prune` makes one."
        )
    return file


def save(folder: Path, source: Source, model: nn.Module, plan: PruningPlan, command: str) -> None:
    """Write weights and plan, in place of all that an earlier run has left there."""
    for name in (PLAN, REPORT, PAGE):
        (folder / name).unlink(missing_ok=True)
    made = {"command": command, "model": source.reference}
    save_checkpoint(folder / MODEL, model, plan, metadata=made)
    plan.save(folder / PLAN)


def figures(folder: Path) -> tuple[PruneReport | None, Any]:
    """Return the report of a pruning run as a record, and what its file says, where there is one.

    Raises:
        InputError: The file is damaged.
    """
    file = folder / REPORT
    if not file.is_file():
        return None, None
    try:
        content = parse_json(read_bytes(file))
        if not isinstance(content, dict) or "criterion" not in content:  # of a training
            return None, content
        return PruneReport.from_json(json.dumps(content)), content
    except (OSError, InputError) as error:
        raise InputError(f"`{file}` cannot be read: {error}") from error


def pruned_model(path: Path, source: Source) -> nn.Module:
    """Return the model of a run."""
    return load_checkpoint(checkpoint_in(path), source.model())


def measured(
    source: Source, models: Mapping[str, nn.Module], *, needed: bool = False
) -> dict[str, dict[str, float]]:
    """Return the metrics of models by name; empty where there is nothing to measure on.

    Raises:
        InputError: There is nothing, and that is not enough.
    """
    from taskprune.calling import call_batch
    from taskprune.distillation import measure

    tasks: Mapping[str, Task] = source.tasks() or {}
    watched = any(task.metric is not None for task in tasks.values())
    if needed and not watched:
        raise InputError(
            f"Measuring takes `tasks()` with a metric each, which `{source.reference}` does not "
            "have. `taskprune init` writes a file that shows what they look like."
        )
    held_out = source.needed("validation", "Measuring") if needed else source.validation()
    if held_out is None:
        return {}
    forward = source.forward or call_batch
    return {name: measure(own, tasks, held_out, forward=forward) for name, own in models.items()}


def metric_table(metrics: Mapping[str, Mapping[str, float]], sizes: Mapping[str, str]) -> Any:
    """A row a model: its size, each task's metric and how far that is from the first row's."""
    first = next(iter(metrics.values()), {})
    rows = [
        [name, sizes[name]]
        + [
            f"{value:.4g}" if own is first else f"{value:.4g} ({value - first[task]:+.3g})"
            for task, value in own.items()
        ]
        for name, own in metrics.items()
    ]
    return text_table("Metrics on the validation data", ("model", "size", *first), rows)


def n_params(model: nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_of(model: nn.Module) -> str:
    """Say how large a model is."""
    return f"{n_params(model):,} parameters"
