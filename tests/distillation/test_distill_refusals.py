from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from distill_run import run, settings
from distill_toys import (
    make_batches,
    make_net,
    make_tasks,
    n_hooks,
    same_state,
    state,
)

import taskprune
from taskprune.distillation import DistillSettings, Validation
from taskprune.distillation.settings import RULES
from taskprune.errors import (
    InputError,
    MissingDependencyError,
    TaskPruneError,
)


def generator() -> Iterator[Any]:
    yield from make_batches()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": generator()}, "one-way iterator"),
        ({"data": 5}, "Found int"),
        ({"data": []}, "no batch"),
        ({"tasks": {}}, "at least one name"),
        ({"taps": ["neck"]}, "No module of the teacher fits the tap `neck`"),
        ({"taps": 5}, "A tap is chosen by a module path"),
        ({"channel_map": {"stage": (0, 1)}}, "Tap `stage`: the channel map"),
        ({"settings": DistillSettings(epochs=1, accumulation=9, cpu=True)}, "less than one step"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(
    changes: Mapping[str, Any], message: str
) -> None:
    student, teacher = make_net(1), make_net(0)
    before = state(student)
    with pytest.raises(TaskPruneError, match=message):
        run(student, teacher, **changes)
    assert same_state(state(student), before)
    assert n_hooks(student) == n_hooks(teacher) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 3, "epochs": 1},
        {"steps": 0},
        {"epochs": 1.5},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"warmup": 1.5},
        {"accumulation": 0},
        {"ema_decay": 1.0},
        {"feature_weight": math.nan},
        {"mixed_precision": "int8"},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(changes: Mapping[str, Any]) -> None:
    with pytest.raises(InputError, match=list(changes)[-1]):
        DistillSettings(**changes)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", True, "a whole number"),
        ("learning_rate", "1e-3", "a positive number"),
        ("learning_rate", None, "a positive number"),
        ("gradient_clip", None, "`math.inf` clips nothing"),
        ("accumulation", None, "a whole number of at least 1"),
        ("checkpoint_every", None, "a whole number of at least 1"),
        ("frozen_batchnorm", "yes", "True or False"),
        ("feature_loss", "mse", "such as `mse`"),
        ("feature_loss", dict, r"Found the class `dict`; make an object of it, `dict\(\.\.\.\)`"),
        ("feature_weight", None, "a number of at least 0"),
        ("output_losses", None, "a dict of functions"),
        ("output_losses", {"near": 1}, "a dict of functions"),
        ("seed", None, "a whole number of at least 0"),
        ("seed", 0.5, "a whole number of at least 0"),
        ("directory", 5, "a path, or None"),
        ("callbacks", print, r"such as `\(callback,\)`"),
        ("keep_best", Validation, "Found the class `Validation`"),
        ("keep_best", True, r"a `Validation\(tasks"),
        ("console", "stderr", "Console`, or None"),
    ],
    ids=lambda value: str(value),
)
def test_settings_of_the_wrong_kind_are_refused_at_once(
    name: str, value: object, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"`DistillSettings\.{name}` must be .*{expected}"):
        DistillSettings(**{name: value})  # type: ignore[arg-type]


def test_every_setting_has_a_rule_that_its_default_keeps() -> None:
    assert list(RULES) == [field.name for field in fields(DistillSettings)]
    DistillSettings()


def test_settings_and_plans_of_another_kind_are_refused() -> None:
    student, teacher, tasks, data = make_net(1), make_net(0), make_tasks(), make_batches()
    for wrong in ({}, {"steps": 3}):
        with pytest.raises(InputError, match=r"`settings` must be .* Found dict"):
            run(student, teacher, settings=wrong)
    result = taskprune.prune(make_net(0), tasks, 0.2, data=data)
    wrong_plan: Any = result
    with pytest.raises(InputError, match=r"Found PruneResult\. Hand in `result\.plan`"):
        taskprune.distill(student, teacher=teacher, tasks=tasks, data=data, plan=wrong_plan)


def test_a_student_that_shares_memory_with_its_teacher_is_refused() -> None:
    teacher = make_net(0)
    with pytest.raises(InputError, match=r"share the memory of `stem\.0\.weight`"):
        run(teacher, teacher)
    half = copy.copy(teacher)
    half._modules = {**teacher._modules, "stem": copy.deepcopy(teacher.stem)}
    with pytest.raises(InputError, match=r"share the memory of `stage\.0\.weight`"):
        run(half, teacher)


def test_a_student_that_cannot_learn_is_refused() -> None:
    student = make_net(1)
    student.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        run(student, make_net(0))


@pytest.mark.parametrize("under", ["", "run"])
def test_a_directory_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, under: str
) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / under
    with pytest.raises(InputError, match=r"folder to write to .*`DistillSettings\.directory`"):
        run(make_net(1), make_net(0), data=[], settings=settings(directory=directory))


def test_a_missing_accelerate_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"taskprune\[distill\]"):
        run(make_net(1), make_net(0))
