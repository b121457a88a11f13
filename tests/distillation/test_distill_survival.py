from __future__ import annotations

import errno
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, same_state, state
from resume_child import CHILD_PATHS, train
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.distillation import DistillSettings, StepRecord, distill
from taskprune.errors import CheckpointError, TrainingError

CHILD = Path(__file__).with_name("resume_child.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_at_random_moments_ends_with_the_weights_of_one_never_stopped(
    tmp_path: Path, seed: int
) -> None:
    process = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path), "random", str(seed)],
        env={**os.environ, "PYTHONPATH": CHILD_PATHS, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout.split()[-1]) >= 1, "nothing was killed"
    expected, history = train(None)
    student, resumed = train(tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == history


class Disk:
    """Lets the first ``room`` writes of a function through, then is full."""

    def __init__(self, write: Any, room: int, error: Exception) -> None:
        self.write, self.room, self.error = write, room, error

    def __call__(self, tensors: Any, path: Path, metadata: Any) -> None:
        self.room -= 1
        self.write(tensors, path, metadata=metadata)
        if self.room < 0:
            os.truncate(path, path.stat().st_size // 2)
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_says_so_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    module = importlib.import_module("taskprune.files.sealed_tensors")
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", Disk(module.save_file, 2, error))
        with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors` .*No space left"):
            train(tmp_path)
    assert not list(tmp_path.glob(".checkpoint.safetensors.*"))
    assert load_file(tmp_path / "checkpoint.safetensors")
    student, history = train(tmp_path)
    expected, whole = train(None)
    assert same_state(state(student), state(expected))
    assert history == whole


def test_a_history_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    def lock(record: StepRecord, student: nn.Module) -> None:
        if record.step == 1:
            (tmp_path / "history.jsonl").unlink()
            (tmp_path / "history.jsonl").mkdir()

    with pytest.raises(CheckpointError, match=r"history\.jsonl` could not be written"):
        train(tmp_path, lock)


def test_a_run_stopped_by_a_bad_batch_goes_on_right_before_it(tmp_path: Path) -> None:
    def go(directory: Path | None, *spoilt_calls: int) -> nn.Module:
        calls: list[int] = []
        spoilt = list(spoilt_calls)  # what stands in a list is data, no part of the run's identity

        def loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
            calls.append(1)
            good = outputs["near"].square().mean()
            return good * math.nan if len(calls) in spoilt else good

        distill(
            student := make_net(1, norm=True),
            make_net(0, norm=True),
            tasks={"near": Task(loss)},
            data=make_batches(),
            taps=["stage"],
            settings=DistillSettings(
                steps=9, learning_rate=1e-2, cpu=True, directory=directory, callbacks=(keep,)
            ),
        )
        return student

    kept: list[dict[str, Tensor]] = []

    def keep(record: StepRecord, student: nn.Module) -> None:
        kept.append(state(student))

    with pytest.raises(TrainingError, match="Step 6: the task loss `near`"):
        go(tmp_path, 6)
    saved = load_file(tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(saved[f"model/student.{n}"], t) for n, t in kept[4].items())
    assert (tmp_path / "history.jsonl").read_text().count("\n") == 5
    resumed, whole = go(tmp_path), go(None)
    assert same_state(state(resumed), state(whole))
