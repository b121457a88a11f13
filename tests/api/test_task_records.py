"""A task says at once what is wrong with it."""

from __future__ import annotations

from typing import Any

import pytest
from front_nets import kind_loss

from taskprune import Metric, Task
from taskprune.errors import InputError


class Accuracy:
    def reset(self) -> None: ...

    def update(self, outputs: Any, batch: Any, /) -> None: ...

    def compute(self) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0),
        ("weight", -1.0),
        ("weight", float("nan")),
        ("weight", "2"),
        ("weight", True),
        ("tolerance", -0.1),
        ("tolerance", float("nan")),
        ("tolerance", "little"),
        ("outputs", ()),
        ("outputs", 3),
        ("outputs", ("lane", 3)),
        ("metric", max),
        ("metric", "accuracy"),
    ],
)
def test_a_field_that_does_not_fit_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"`Task\.{field}` must be.*Found") as caught:
        Task(kind_loss, **{field: value})
    assert isinstance(caught.value, ValueError)


def test_the_loss_must_be_a_function() -> None:
    with pytest.raises(InputError, match=r"`Task\.loss` must be a function .*Found float"):
        Task(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outputs", "paths"),
    [(None, None), ("lane", ("lane",)), (("a", "b.c"), ("a", "b.c")), (["a"], ("a",))],
)
def test_outputs_are_paths(outputs: Any, paths: Any) -> None:
    assert Task(kind_loss, outputs=outputs).output_paths == paths


def test_any_object_with_three_methods_is_a_metric() -> None:
    assert isinstance(Accuracy(), Metric)
    assert Task(kind_loss, metric=Accuracy(), tolerance=0.01).metric is not None
