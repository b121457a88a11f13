from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taskprune.errors import InputError, ToleranceError
from taskprune.promise import OverImages, PerSample, Promise
from taskprune.promise.promising import promised

N = 1000


class Losing(nn.Module):
    """Stands for a model that loses so much of each task on average; how much differs."""

    def __init__(self, **lost: float) -> None:
        super().__init__()
        self.lost = lost
        self.device = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {task: (0.9 - lost * 2 * x).clamp(0, 1) for task, lost in self.lost.items()}


def data(n: int = N, seed: int = 0) -> list[Tensor]:
    return list(torch.split(torch.rand(n, generator=torch.Generator().manual_seed(seed)), 100))


def scores(model: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
    return dict(model(batch))


WHOLE = Losing(lane=0.0, drivable=0.0)


def go(
    *models: nn.Module, samples: Any = None, confidence: float = 0.95, **tolerances: float
) -> list[Promise]:
    samples = PerSample(data(), scores) if samples is None else samples
    tolerances = tolerances or {"lane": 0.05, "drivable": 0.05}
    makes = [lambda model=model: model for model in models]
    return promised(WHOLE, makes, samples, tolerances, confidence)


def test_models_are_promised_in_order_up_to_the_first_that_fails() -> None:
    safe, unsafe = Losing(lane=0.01, drivable=0.02), Losing(lane=0.01, drivable=0.2)
    model = safe.train()
    made = go(model, safe, unsafe, safe)
    assert model.training
    assert [promise.tested for promise in made] == [1, 2]
    task = made[0].tasks["drivable"]
    assert task.lost == pytest.approx(0.02, rel=0.05)
    assert task.lost < task.at_most <= task.tolerance == 0.05
    assert made[0].is_exact
    assert "With 95 % confidence no task loses more" in str(made[0])
    assert "independent draws" in made[0].assumptions


def test_a_second_task_needs_no_correction() -> None:
    (both,) = go(Losing(lane=0.01, drivable=0.01))
    (one,) = go(Losing(lane=0.01, drivable=0.01), lane=0.05)
    assert one.tasks["lane"] == both.tasks["lane"]


@pytest.mark.parametrize(
    ("lost", "n", "message"),
    [
        (0.0, 20, r"`lane` has 20 samples, and it takes \d+ to promise .* even where nothing"),
        (0.1, N, r"`lane` lost 0\.\d+ on the samples and may lose 0.05"),
        (0.049, N, r"`lane` lost 0.0\d+ on 1,000 samples, .* it takes about [\d,]+ samples"),
    ],
)
def test_where_nothing_can_be_promised_the_reason_is_said(
    lost: float, n: int, message: str
) -> None:
    samples = PerSample(data(n), scores)
    with pytest.raises(ToleranceError, match=message):
        go(Losing(lane=lost), samples=samples, lane=0.05)


def test_samples_without_labels_do_not_count() -> None:
    def labelled(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        found = model(batch)["lane"]
        return {"lane": torch.where(batch < 0.5, found, torch.nan)}

    (promise,) = go(Losing(lane=0.01), samples=PerSample(data(), labelled), lane=0.05)
    assert promise.tasks["lane"].samples == sum(int((batch < 0.5).sum()) for batch in data())


def _missing(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    found = model(batch)["lane"]
    return {"lane": torch.where(found < 0.88, torch.nan, found)}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (_missing, "NaN for other samples than before"),
        (lambda _, batch: {"lane": 2 + batch}, "from 0 to 1. Found 2"),
        (lambda _, batch: {"lane": batch.mean()}, "one score for each sample"),
        (lambda _, batch: {"lane": batch * torch.nan}, "None of the samples has a label"),
        (lambda _, batch: {"other": batch}, "Found none for `lane` among scores of `other`"),
        (lambda *_: {"lane": [0.5]}, "must return {task: tensor"),
        (lambda *_: None, "must return {task: tensor"),
    ],
)
def test_scores_that_say_nothing_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        go(Losing(lane=0.02), samples=PerSample(data(), returned), lane=0.05)


@pytest.mark.parametrize("confidence", [0.3, 1.0, 95.0])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(InputError, match="`confidence` must be a probability"):
        go(Losing(lane=0.0), confidence=confidence)


def test_scores_without_bounds_and_data_of_one_pass_are_refused() -> None:
    with pytest.raises(InputError, match="Without bounds on the scores"):
        PerSample(data(), scores, highest=float("inf"))
    with pytest.raises(InputError, match="one pass only"):
        PerSample(iter(data()), scores)
    with pytest.raises(InputError, match="holds no batch"):
        PerSample([], scores)


def hits(model: nn.Module) -> Any:
    """A metric that is no mean over images: found objects over all objects."""
    with torch.no_grad():
        found = model(torch.cat(data(600)))["lane"].numpy()
    objects = np.random.default_rng(0).integers(1, 9, len(found))
    return lambda chosen: float((found * objects)[chosen].sum() / objects[chosen].sum())


def test_metrics_over_images_are_promised_by_the_bootstrap() -> None:
    images = OverImages("lane", 600, hits)
    (promise,) = go(Losing(lane=0.02), samples=images, lane=0.05)
    assert not promise.is_exact
    assert promise.tasks["lane"].lost < promise.tasks["lane"].at_most < 0.025
    assert "about 95 % confidence" in str(promise)
    both: Sequence[Any] = [images, PerSample(data(), lambda m, b: {"drivable": m(b)["drivable"]})]
    (promise,) = go(Losing(lane=0.02, drivable=0.01), samples=both)
    assert promise.tasks.keys() == {"lane", "drivable"}
    with pytest.raises(ToleranceError, match="it takes more samples"):
        go(Losing(lane=0.0485), samples=images, lane=0.0495)


def test_images_that_say_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="needs 500 images"):
        OverImages("lane", 10, hits)
    undefined = replace(OverImages("lane", 600, hits), measure=lambda _: lambda _: np.nan)
    with pytest.raises(InputError, match="must be a finite number"):
        go(Losing(lane=0.0), samples=undefined, lane=0.05)
