from __future__ import annotations

import sys
from pathlib import Path

import pytest
from distill_toys import make_batches, make_net, make_tasks
from torch import nn

from taskprune.distillation import DistillSettings, StepRecord, TensorBoardLog, distill
from taskprune.errors import MissingDependencyError

# Its own dependencies warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def measured(record: StepRecord, student: nn.Module) -> dict[str, float]:
    return {"validation/near": float(record.step)}


def go(log: TensorBoardLog, steps: int = 3) -> tuple[StepRecord, ...]:
    return distill(
        make_net(1),
        make_net(0),
        tasks=make_tasks(),
        data=make_batches(),
        taps=["stage"],
        settings=DistillSettings(steps=steps, cpu=True, callbacks=(measured, log)),
    ).history


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {n: [(e.step, e.value) for e in events.Scalars(n)] for n in events.Tags()["scalars"]}


def test_every_figure_of_a_step_is_there_when_the_step_is_over(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    history = go(TensorBoardLog(tmp_path))
    found = written(tmp_path)
    assert set(found) == {
        *("loss", "learning_rate", "gradient_norm"),
        *("task/near", "task/far", "feature/stage", "validation/near"),
    }
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    assert [value for _, value in found["loss"]] == pytest.approx([r.loss for r in history])
    assert found["validation/near"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_steps_written_after_the_last_checkpoint_are_replaced(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = TensorBoardLog(tmp_path)
    first = go(log)
    log(first[1], make_net(1))
    log.close()
    assert [step for step, _ in written(tmp_path)["loss"]] == [1, 2]


def test_a_missing_tensorboard_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"taskprune\[tensorboard\]"):
        TensorBoardLog(tmp_path)
    assert list(tmp_path.iterdir()) == []
