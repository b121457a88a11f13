from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import Interrupted, Scenes, interrupt_at, make_net, make_tasks, same_state, state
from resume_child import STEPS, train
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Sampler

from taskprune.distillation import DistillSettings, StepRecord, distill
from taskprune.distillation.run_checkpoint import FORMAT
from taskprune.errors import CheckpointError
from taskprune.files import write_sealed
from taskprune.terminal import console

CHILD = Path(__file__).with_name("resume_child.py")


@cache
def uninterrupted() -> tuple[nn.Module, tuple[StepRecord, ...]]:
    student, history = train(None)
    return student, history


def killed_child(directory: Path, how: str) -> int:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, str(CHILD), str(directory), how],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        check=False,
    )
    return process.returncode


def test_a_run_killed_twice_ends_with_the_weights_of_one_never_stopped(tmp_path: Path) -> None:
    expected, history = uninterrupted()
    assert killed_child(tmp_path, "step") == -signal.SIGKILL
    assert killed_child(tmp_path, "write") == -signal.SIGKILL
    assert list(tmp_path.glob(".checkpoint.safetensors.*.tmp"))
    student, resumed = train(tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == history
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.safetensors",
        "history.jsonl",
    ]


@pytest.mark.parametrize("step", [1, 3, 4, 8, STEPS])
def test_an_interrupted_run_goes_on_exactly(tmp_path: Path, step: int) -> None:
    expected, history = uninterrupted()
    with pytest.raises(Interrupted):
        train(tmp_path, interrupt_at(step))
    torch.manual_seed(step)  # the state of the process must not matter
    student, resumed = train(tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == history


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first, history = train(tmp_path)
    steps: list[int] = []
    again, same = train(tmp_path, lambda record, _: steps.append(record.step))
    assert steps == []
    assert same_state(state(again), state(first))
    assert same == history


def test_ctrl_c_saves_after_the_step_it_came_in(tmp_path: Path) -> None:
    expected, history = uninterrupted()

    def press(record: StepRecord, _: nn.Module) -> None:
        if record.step == 3:
            signal.raise_signal(signal.SIGINT)

    # A process in the background is started deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="Saved after step 3"):
            train(tmp_path, press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    steps: list[int] = []
    student, resumed = train(tmp_path, lambda record, _: steps.append(record.step))
    assert steps[0] == 4
    assert same_state(state(student), state(expected))
    assert resumed == history


def test_a_finished_run_goes_on_with_more_steps_and_an_unfinished_one_does_not(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    run(tmp_path, steps=3)
    with pytest.raises(CheckpointError, match="n_steps"):
        run(tmp_path, steps=2)
    history = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [1, 2, 3]


def test_where_nobody_looks_a_line_now_and_then_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="taskprune")
    run(tmp_path / "at once")
    assert not caplog.messages
    monkeypatch.setattr(console, "EVERY", 0.0)
    run(tmp_path / "slowly")
    assert [line.split(",")[0] for line in caplog.messages] == [
        "Distilling: step 1 of 2",
        "Distilling: step 2 of 2",
    ]


def test_a_run_without_its_history_file_still_goes_on(tmp_path: Path) -> None:
    expected, history = uninterrupted()
    with pytest.raises(Interrupted):
        train(tmp_path, interrupt_at(7))
    (tmp_path / "history.jsonl").unlink()
    student, resumed = train(tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == history[6:]


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(CheckpointError, match=r"Line 1 of `.*history\.jsonl`"):
        train(tmp_path)


def run(directory: Path, **changes: float) -> None:
    distill(
        make_net(1),
        make_net(0),
        tasks=make_tasks(),
        data=[(torch.ones(2, 3, 8, 8), torch.ones(2, 1, 4, 4), None)],
        taps=["stage"],
        settings=DistillSettings(
            **{"steps": 2, "cpu": True, "directory": directory, **changes}  # type: ignore[arg-type]
        ),
    )


@pytest.mark.parametrize("part", [0, 3, 8, 40, 0.3, 0.9, 0.999], ids=lambda p: f"{p} of the file")
def test_a_truncated_checkpoint_is_named(tmp_path: Path, part: float) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    size = path.stat().st_size
    os.truncate(path, int(part * size) if isinstance(part, float) else part)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors` is damaged"):
        run(tmp_path)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for metadata in (None, {"taskprune": "{}"}):
        save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="none that taskprune wrote"):
            run(tmp_path)
    for text in ("[]", "{", "{}"):
        write_sealed(path, {}, {"taskprune": text}, file_format=FORMAT)
        with pytest.raises(CheckpointError, match="no checkpoint of a distillation run"):
            run(tmp_path)
    write_sealed(path, {}, {}, file_format="other/2")
    with pytest.raises(CheckpointError, match="has the format 'other/2'"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("learning_rate", 0.5), ("seed", 3), ("steps", 1), ("feature_weight", 2.0)]
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, key: str, value: float) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match=f"another run: `(n_)?{key}`"):
        run(tmp_path, **{key: value})


def test_a_checkpoint_of_another_architecture_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    run(tmp_path)
    student = make_net(1, width=3)
    before = state(student)
    with pytest.raises(CheckpointError, match="another run: `shapes`"):
        distill(
            student,
            make_net(0),
            tasks=make_tasks(),
            data=[(torch.ones(2, 3, 8, 8), torch.ones(2, 1, 4, 4), None)],
            taps=["stage"],
            channel_map={"stage": (0, 1, 2)},
            settings=DistillSettings(steps=2, cpu=True, directory=tmp_path),
        )
    assert same_state(state(student), before)


def test_data_that_became_shorter_is_refused(tmp_path: Path) -> None:
    batch = (torch.ones(2, 3, 8, 8), torch.ones(2, 1, 4, 4), None)

    def go(n: int) -> None:
        distill(
            make_net(1),
            make_net(0),
            tasks=make_tasks(),
            data=[batch] * n,
            taps=["stage"],
            settings=DistillSettings(
                steps=8,
                cpu=True,
                directory=tmp_path,
                checkpoint_every=5,
                callbacks=(interrupt_at(6),),
            ),
        )

    with pytest.raises(Interrupted):
        go(8)
    with pytest.raises(CheckpointError, match="after batch 5 of an epoch; the data has 3"):
        go(3)


class OwnOrder(Sampler[int]):
    """Permutes by its epoch, which it counts itself, so that a new process would begin anew."""

    epoch = 0

    def __len__(self) -> int:
        return 10

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        self.epoch += 1
        return iter(torch.randperm(10, generator=generator).tolist())


def loader_with_generator() -> DataLoader[Any]:
    return DataLoader(
        Scenes(10), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(4)
    )


def loader_with_epochs() -> DataLoader[Any]:
    return DataLoader(Scenes(10), batch_size=2, sampler=OwnOrder())


@pytest.mark.parametrize("make", [loader_with_generator, loader_with_epochs])
def test_orders_of_their_own_go_on_exactly(
    tmp_path: Path, make: Callable[[], DataLoader[Any]]
) -> None:
    def go(directory: Path | None, *callbacks: object) -> tuple[nn.Module, list[float]]:
        student = make_net(1)
        result = distill(
            student,
            make_net(0),
            tasks=make_tasks(),
            data=make(),
            taps=["stage"],
            settings=DistillSettings(
                steps=14,
                cpu=True,
                directory=directory,
                checkpoint_every=1,
                callbacks=callbacks,  # type: ignore[arg-type]
            ),
        )
        return student, [record.tasks["near"] for record in result.history]

    expected, losses = go(None)
    with pytest.raises(Interrupted):
        go(tmp_path, interrupt_at(8))
    student, resumed = go(tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == losses
