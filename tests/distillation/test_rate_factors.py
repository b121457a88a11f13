from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distill_run import run, settings
from distill_toys import make_net, make_tasks, state
from torch import Tensor

from taskprune.distillation import DistillSettings
from taskprune.errors import CheckpointError, InputError


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((after[name] - before[name]).abs().max()) for name in before}


def test_a_branch_is_trained_alone_and_the_rest_stays_to_the_last_bit() -> None:
    student, teacher = make_net(1, norm=True), make_net(2, norm=True)
    student.stem.requires_grad_(False)
    before, trained = state(student), [p.requires_grad for p in student.parameters()]
    run(
        student,
        teacher,
        tasks={"near": make_tasks()["near"]},
        taps=(),
        settings=settings(rate_factors={"*": 0, "near": 1}),
    )
    changed = {name for name, by in moved(before, state(student)).items() if by}
    assert changed == {f"near.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert [p.requires_grad for p in student.parameters()] == trained


def test_a_part_moves_by_its_factor() -> None:
    """AdamW's first step is as long as the learning rate, whatever the gradient."""
    student = make_net(1)
    before = state(student)
    factors = {"stage": 0.1, "stage.0.bias": 0.5, "f*": 2}
    run(student, make_net(2), settings=settings(1, warmup=0, weight_decay=0, rate_factors=factors))
    expected = {"stem": 1.0, "near": 1.0, "stage.0.weight": 0.1, "stage.0.bias": 0.5, "far": 2.0}
    for name, by in moved(before, state(student)).items():
        factor = next(f for part, f in expected.items() if name.startswith(part))
        assert by == pytest.approx(1e-2 * factor, rel=1e-3), name


def test_factors_are_part_of_the_run(tmp_path: Path) -> None:
    run(make_net(1), make_net(2), settings=settings(directory=tmp_path))
    other = settings(directory=tmp_path, rate_factors={"far": 2})
    with pytest.raises(CheckpointError, match="rate_factors"):
        run(make_net(1), make_net(2), settings=other)


def test_what_fits_nothing_or_leaves_nothing_is_refused() -> None:
    student = make_net(1)
    before = state(student)
    with pytest.raises(InputError, match=r"`nea` in `DistillSettings.rate_factors`.*near"):
        run(student, make_net(2), settings=settings(rate_factors={"nea": 2}))
    with pytest.raises(InputError, match="leaves nothing to train"):
        run(student, make_net(2), settings=settings(rate_factors={"*": 0}))
    with pytest.raises(InputError, match=r"rate_factors.*at least 0"):
        DistillSettings(rate_factors={"far": -1})
    assert all(torch.equal(before[name], tensor) for name, tensor in state(student).items())
    assert all(p.requires_grad for p in student.parameters())
