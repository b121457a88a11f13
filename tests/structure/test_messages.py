"""Messages say what was found in a few words, however large it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import taskprune
from taskprune.errors import InputError, short

NET = nn.Sequential(*(nn.Linear(8, 8) for _ in range(40)))
TENSOR = torch.zeros(3, 50, 50)


def pruned(**arguments: Any) -> None:
    taskprune.prune(NET, example_inputs=torch.zeros(2, 8), importance="magnitude", **arguments)


@pytest.mark.parametrize("found", [NET, TENSOR, [TENSOR] * 9, {"images": TENSOR}])
@pytest.mark.parametrize(
    "given",
    [
        lambda found: pruned(ratio=found),
        lambda found: pruned(budget=found),
        lambda found: pruned(ratio=0.3, safety=found),
        lambda found: pruned(ratio=0.3, settings=found),
        lambda found: taskprune.Budget(params=found),
        lambda found: taskprune.Budget(modalities=found),
        lambda found: taskprune.Safety(min_channels=found),
        lambda found: taskprune.Safety(round_to=found),
        lambda found: taskprune.PruneSettings(steps=found),
        lambda found: taskprune.PruneSettings(protect=[found]),
        lambda found: taskprune.Task(lambda *_: TENSOR, weight=found),
        lambda found: taskprune.Task(lambda *_: TENSOR, outputs=found),
        lambda found: taskprune.DistillSettings(steps=found),
        lambda found: taskprune.export(NET, "net.pt2", TENSOR, tolerance=found),
    ],
)
def test_what_was_found_is_shown_in_short(given: Callable[[Any], None], found: Any) -> None:
    with pytest.raises(InputError) as error:
        given(found)
    assert len(str(error.value)) < 700
    assert "0." * 5 not in str(error.value).replace(", ", "")


def test_short_names_tensors_and_modules_wherever_they_are() -> None:
    assert short({"a": [TENSOR]}) == "{'a': [Tensor of shape [3, 50, 50]]}"
    assert short(NET) == "a module Sequential"
    assert short(0.25) == "0.25"
    assert len(short("x" * 9999)) <= 80
