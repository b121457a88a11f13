"""Run by the resume tests in a process of its own, which may kill itself."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from distill_toys import make_loader, make_net, make_tasks
from torch import nn

from taskprune.distillation import DistillSettings, StepRecord, distill
from taskprune.distillation.history import Callback

STEPS = 14
CHILD_PATHS = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


def train(
    directory: Path | None, *callbacks: Callback, steps: int = STEPS, checkpoint_every: int = 3
) -> tuple[Any, Any]:
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
            checkpoint_every=checkpoint_every,
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
    sealed_tensors: Any = importlib.import_module("taskprune.files.sealed_tensors")
    write, done = sealed_tensors.save_file, []

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata=metadata)
        done.append(path)
        if len(done) == at_write:
            os.truncate(path, path.stat().st_size // 2)
            die()

    sealed_tensors.save_file = half


def survive_random_kills(folder: Path, seed: int) -> int:
    """Train in forks that are killed after random times, until one gets through; count the dead."""
    train(None)  # the first run also loads what later ones find loaded
    began = time.perf_counter()
    train(None)
    span = time.perf_counter() - began
    moments = random.Random(seed)
    n_killed = 0
    while True:
        child = os.fork()
        if child == 0:
            train(folder, checkpoint_every=1)
            os._exit(0)
        if n_killed < 8:
            time.sleep(moments.uniform(0.0, 0.7 * span))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            if n_killed:
                return n_killed
            shutil.rmtree(folder)  # faster than the first blow: from the start
            continue
        n_killed += 1


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "random":
        torch.set_num_threads(1)
        sys.stdout.write(f"{survive_random_kills(folder, seed=int(sys.argv[3]))}\n")
    elif how == "step":
        train(folder, die_at(5))
    else:
        die_while_writing(2)
        train(folder)
