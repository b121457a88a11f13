from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill_run import run, settings
from distill_toys import (
    Batch,
    Interrupted,
    interrupt_at,
    make_batches,
    make_net,
    make_tasks,
    same_state,
    state,
)
from launched_processes import needs_processes, run_in_processes
from safetensors.torch import load_file
from torch import nn
from unlabelled_child import train as train_on_two
from unlabelled_child import without_labels

from taskprune.distillation import StepRecord
from taskprune.errors import TrainingError

CHILD = Path(__file__).with_name("unlabelled_child.py")


def test_a_step_without_anything_to_learn_is_recorded_and_changes_nothing() -> None:
    states: list[dict[str, torch.Tensor]] = []

    def keep(record: StepRecord, student: nn.Module) -> None:
        states.append(state(student))

    data = [make_batches()[0], without_labels(make_batches()[1])]
    result = run(
        make_net(1, norm=True),
        make_net(0, norm=True),
        data=data,
        taps=(),
        settings=settings(4, callbacks=(keep,), weight_decay=0.5),
    )
    assert [r.step for r in result.history] == [1, 2, 3, 4]
    for record in (result.history[1], result.history[3]):
        assert (record.loss, record.gradient_norm, record.tasks) == (0.0, 0.0, {})
    assert same_state(states[0], states[1])
    assert same_state(states[2], states[3])
    assert not same_state(states[1], states[2])


def test_a_weight_of_features_that_ends_at_zero_leaves_steps_without_labels_idle() -> None:
    data = [make_batches()[0], without_labels(make_batches()[1])]
    ramp = settings(8, feature_weight=lambda step: max(0.0, 2.0 - step / 2))
    history = run(make_net(1), make_net(0), data=data, settings=ramp).history
    assert [bool(r.gradient_norm) for r in history] == [*[True] * 5, False, True, False]


def test_a_batch_without_labels_adds_nothing_to_the_others_of_its_step() -> None:
    labelled, unlabelled = make_batches()[0], without_labels(make_batches()[1])
    halved = {
        name: type(task)(task.loss, weight=task.weight / 2) for name, task in make_tasks().items()
    }
    for data in ([labelled, unlabelled], [unlabelled, labelled]):
        student, alone = make_net(1), make_net(1)
        result = run(student, make_net(0), data=data, taps=(), settings=settings(3, accumulation=2))
        run(alone, make_net(0), data=[labelled], tasks=halved, taps=(), settings=settings(3))
        assert set(result.history[0].tasks) == {"near", "far"}
        for first, second in zip(student.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(first, second)


def test_followed_features_of_a_frozen_part_teach_nothing() -> None:
    student = make_net(1)
    student.stem.requires_grad_(False)
    data = [make_batches()[0], without_labels(make_batches()[1])]
    history = run(student, make_net(0), data=data, taps=["stem"]).history
    assert history[1].features["stem"] > 0
    assert [bool(record.gradient_norm) for record in history] == [True, False, True, False]


@pytest.mark.parametrize(
    ("steps", "message"),
    [(9, "Step 5: .* from step 1 on, in a whole pass"), (3, "Step 3: .* in the whole run")],
)
def test_data_without_anything_to_learn_is_an_error(steps: int, message: str) -> None:
    student = make_net(1)
    before = state(student)
    data = [without_labels(batch) for batch in make_batches(4)]
    with pytest.raises(TrainingError, match=message):
        run(student, make_net(0), data=data, taps=(), settings=settings(steps))
    assert same_state(state(student), before)


def test_a_run_with_idle_steps_goes_on_exactly(tmp_path: Path) -> None:
    data: list[Batch] = [make_batches()[0], *map(without_labels, make_batches()[1:])]

    def go(**changes: Any) -> tuple[nn.Module, Any]:
        student = make_net(1, norm=True)
        chosen = settings(11, ema_decay=0.8, checkpoint_every=3, **changes)
        return student, run(
            student, make_net(0, norm=True), data=data, taps=(), settings=chosen
        ).history

    expected, history = go()
    with pytest.raises(Interrupted):
        go(directory=tmp_path, callbacks=(interrupt_at(4),))
    student, resumed = go(directory=tmp_path)
    assert same_state(state(student), state(expected))
    assert resumed == history


@pytest.mark.slow
@needs_processes
def test_processes_without_labels_and_with_them_train_one_student(tmp_path: Path) -> None:
    run_in_processes(CHILD, tmp_path)
    for name in ("one", "none"):
        students = [load_file(tmp_path / f"{name}_{rank}.safetensors") for rank in (0, 1)]
        assert same_state(*students)
    # A process without labels counts as zero in the mean over processes.
    alone = state(train_on_two("one", batch_size=2, halved=True))
    for key, tensor in load_file(tmp_path / "one_0.safetensors").items():
        torch.testing.assert_close(tensor, alone[key], atol=1e-6, rtol=1e-5)
    said = [(tmp_path / f"said_{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "a whole pass through the data" in said[0]
