"""Run by the resume tests in a process of its own, which may kill itself."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from distill_toys import make_loader, make_net, make_tasks
from torch import nn

from taskprune.distillation import DistillSettings, StepRecord, distill
from taskprune.distillation.history import Callback

STEPS = 14


def train(directory: Path | None, *callbacks: Callback, steps: int = STEPS) -> tuple[Any, Any]:
    """Train with everything that has state: dropout, norms, an adapter, an average, data order."""
    student = make_net(1, width=4, norm=True, dropout=0.3)
    result = distill(
        student,
        make_net(0, norm=True),
        tasks=make_tasks(),
        data=make_loader(),
        taps=["stem", "stage"],
        settings=DistillSettings(
            steps=steps,
            learning_rate=1e-2,
            accumulation=2,
            ema_decay=0.8,
            cpu=True,
            directory=directory,
            checkpoint_every=3,
            callbacks=callbacks,
        ),
    )
    return student, result.history


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: int) -> Callback:
    def callback(record: StepRecord, student: nn.Module) -> None:
        if record.step == step:
            die()

    return callback


def die_while_writing(at_write: int) -> None:
    """Kill the process when a checkpoint is half on the disk."""
    run_checkpoint: Any = importlib.import_module("taskprune.distillation.run_checkpoint")
    write, done = run_checkpoint.save_file, []

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata=metadata)
        done.append(path)
        if len(done) == at_write:
            os.truncate(path, path.stat().st_size // 2)
            die()

    run_checkpoint.save_file = half


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "step":
        train(folder, die_at(5))
    else:
        die_while_writing(2)
        train(folder)
