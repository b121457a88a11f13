from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, make_tasks, near_loss, same_state, state
from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.distillation import DistillResult, DistillSettings, GradNorm, StepRecord, distill
from taskprune.errors import InputError


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


def interrupt(record: StepRecord, student: nn.Module) -> None:
    if record.step == 5:
        raise Interrupted


def go(student: nn.Module, steps: int = 8, **changes: Any) -> DistillResult:
    settings = {"weighting": GradNorm("stem", learning_rate=0.1), "checkpoint_every": 3, **changes}
    return distill(
        student,
        make_net(0),
        tasks=settings.pop("tasks", make_tasks()),
        data=make_batches(),
        taps=settings.pop("taps", ["stage"]),
        settings=DistillSettings(steps=steps, learning_rate=1e-2, cpu=True, **settings),
    )


def settled(weighting: GradNorm, losses: dict[str, float], norms: dict[str, float]) -> list[float]:
    """Return the pulls after many steps in which losses went from 1 to ``losses``."""
    learnt = weighting.updated({}, dict.fromkeys(losses, 1.0), norms)
    for _ in range(4000):
        learnt = weighting.updated(learnt, losses, norms)
    return [weighting.weight(learnt, term) * norms[term] for term in losses]


def test_terms_that_learn_alike_end_with_equal_pulls() -> None:
    norms = {"a": 5.0, "b": 0.1, "distillation": 1.0}
    pulls = settled(GradNorm("w", learning_rate=0.005), dict.fromkeys(norms, 0.5), norms)
    assert max(pulls) < 1.05 * min(pulls)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5])
def test_slow_learners_end_with_the_papers_larger_pull(alpha: float) -> None:
    weighting = GradNorm("w", alpha=alpha, learning_rate=0.002)
    slow, fast = settled(weighting, {"slow": 0.9, "fast": 0.3}, {"slow": 1.0, "fast": 2.0})
    assert slow / fast == pytest.approx(3**alpha, rel=0.05)


def test_one_step_descends_the_papers_loss() -> None:
    norms = {"a": 3.0, "b": 1.0}
    logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    pulls = logs.exp() * torch.tensor([3.0, 1.0])
    rates = torch.tensor([0.5, 1.0]) ** 1.5
    mean = pulls.mean().detach()
    torch.autograd.backward(((pulls - mean * rates / rates.mean()).abs() / mean).sum())
    assert logs.grad is not None
    expected = torch.softmax(logs.detach() - 0.01 * logs.grad, 0) * 2  # scaled to a mean of 1
    weighting = GradNorm("w", learning_rate=0.01)
    first = {"first_loss/a": 1.0, "first_loss/b": 1.0}
    learnt = weighting.updated(first, {"a": 0.5, "b": 1.0}, norms)
    found = [weighting.weight(learnt, name) for name in norms]
    assert found == pytest.approx(expected.tolist())


def test_a_missing_term_and_one_without_gradient_change_nothing() -> None:
    weighting = GradNorm("w")
    learnt = weighting.updated({}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 3.0})
    assert weighting.updated(learnt, {"a": 0.5}, {"a": 1.0}) == learnt
    assert weighting.updated(learnt, {"a": 0.5, "b": 1.0}, {"a": 1.0, "b": 0.0}) == learnt


def test_the_gradients_measured_are_those_of_each_term_in_the_shared_module() -> None:
    seen: list[dict[str, float]] = []

    class Watching(GradNorm):
        def updated(self, learnt: Any, losses: Any, norms: Any) -> dict[str, float]:
            seen.append(dict(norms))
            return super().updated(learnt, losses, norms)

    student = make_net(1)
    alone = make_net(1)
    go(student, steps=1, weighting=Watching("stem"))
    batch = make_batches()[0]
    alone.train()
    loss = near_loss(alone(batch[0]), batch)
    assert loss is not None
    gradients = torch.autograd.grad(loss, list(alone.stem.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert seen[0]["near"] == pytest.approx(norm.item(), rel=1e-5)
    assert set(seen[0]) == {"near", "far", "distillation"}
    assert seen[0]["distillation"] > 0


def test_distillation_is_weighed_against_the_tasks_and_beside_their_own_weights() -> None:
    history = go(make_net(1), feature_weight=3.0).history
    assert history[0].weights == {"near": 1.0, "far": 0.5, "distillation": 1.0}
    assert history[-1].weights["distillation"] != 1.0
    for record in history:
        tasks = sum(record.weights[name] * loss for name, loss in record.tasks.items())
        features = 3.0 * record.weights["distillation"] * sum(record.features.values())
        assert record.loss == pytest.approx(tasks + features, rel=1e-5)
        factors = [record.weights["near"], 2 * record.weights["far"]]
        assert sum([*factors, record.weights["distillation"]]) == pytest.approx(3.0)


def test_what_is_learnt_survives_an_interruption(tmp_path: Path) -> None:
    whole, resumed = make_net(1), make_net(1)
    expected = go(whole)
    with pytest.raises(Interrupted):
        go(make_net(1), directory=tmp_path, callbacks=(interrupt,))
    assert go(resumed, directory=tmp_path).history == expected.history
    assert same_state(state(resumed), state(whole))


def test_a_module_without_parameters_to_train_is_refused() -> None:
    for path, found in (("neck", "no such module"), ("stem.1", "no parameter")):
        with pytest.raises(InputError, match=f"`{path}`. Found {found}"):
            go(make_net(1), weighting=GradNorm(path))


def test_a_task_with_the_name_of_the_teachers_term_is_refused() -> None:
    def loss(outputs: Any, batch: Any) -> Tensor | None:
        return near_loss(outputs, batch)

    with pytest.raises(InputError, match="Rename the task"):
        go(make_net(1), tasks={"distillation": Task(loss)})


def test_values_out_of_range_are_refused() -> None:
    for name in ("alpha", "learning_rate", "largest_move"):
        with pytest.raises(InputError, match=rf"GradNorm\.{name}"):
            GradNorm("stem", **{name: -1.0})
