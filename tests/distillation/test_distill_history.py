from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from distill_run import run, settings
from distill_toys import (
    make_batches,
    make_net,
    make_tasks,
    near_loss,
    same_state,
    state,
)
from rich.console import Console
from torch import nn

from taskprune.calling.task import Task
from taskprune.distillation import (
    StepRecord,
    Validation,
)
from taskprune.errors import (
    InputError,
)


def test_history_is_written_as_json_lines(tmp_path: Path) -> None:
    result = run(make_net(1), make_net(0), settings=settings(3, directory=tmp_path / "a" / "run"))
    lines = (tmp_path / "a" / "run" / "history.jsonl").read_text().splitlines()
    assert [StepRecord(**json.loads(line)) for line in lines] == list(result.history)


def test_progress_is_shown_where_a_console_is_passed(capsys: pytest.CaptureFixture[str]) -> None:
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    run(make_net(1), make_net(0), settings=settings(3, console=console))
    assert "3/3" in text.getvalue()
    assert "near" in text.getvalue()
    run(make_net(1), make_net(0))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_keeps_the_figures_measured_last() -> None:
    def measured(record: StepRecord, student: nn.Module) -> dict[str, float]:
        many = {f"figure {i}": 0.0 for i in range(20)} if record.step == 3 else {}
        return {"lane[0]": 0.25, **many} if record.step % 2 else {}

    shown = []
    for steps in (2, 3):
        text = StringIO()
        console = Console(file=text, force_terminal=True, width=200, color_system=None)
        chosen = settings(steps, console=console, callbacks=(measured,))
        run(make_net(1), make_net(0), settings=chosen)
        shown.append([line for line in text.getvalue().splitlines() if f"{steps}/{steps}" in line])
    few, many = (re.sub(r"\x1b\[[0-9;?]*\w", "", lines[-1]).strip() for lines in shown)
    assert few.endswith(" | lane[0] 0.25")
    assert " | lane[0] 0.25 figure 0 0" in many
    assert many.endswith("…")
    assert len(many) <= 160


class MeanNear:
    """A metric for the test: minus the mean squared output."""

    def reset(self) -> None:
        self.values: list[float] = []

    def update(self, outputs: Any, batch: Any, /) -> None:
        self.values.append(-float(outputs["near"].square().mean()))

    def compute(self) -> float:
        return sum(self.values) / len(self.values)


def test_validation_joins_the_history_and_changes_nothing() -> None:
    tasks = {"near": Task(near_loss, metric=MeanNear())}
    validation = Validation(tasks, make_batches(2), every=2)
    plain, watched = make_net(1, norm=True, dropout=0.5), make_net(1, norm=True, dropout=0.5)
    teacher = make_net(0, norm=True)
    run(plain, teacher)
    result = run(watched, teacher, settings=settings(callbacks=(validation,)))
    assert [list(record.measured) for record in result.history] == [
        [],
        ["validation/near"],
        [],
        ["validation/near"],
    ]
    assert same_state(state(plain), state(watched))
    with pytest.raises(InputError, match="metric"):
        Validation(make_tasks(), make_batches(1), every=2)
