"""The benchmark of promises: what is wrong is counted as wrong, by every bound."""

from __future__ import annotations

import numpy as np
import promise as benchmark
import pytest


def fixed(*lost: float) -> benchmark.World:
    """A world in which every sample loses the same."""

    def draw(_: np.random.Generator, n: int) -> dict[str, benchmark.Drawn]:
        whole = np.full(n, 0.9)
        return {"lane": benchmark.Drawn(whole, whole - np.array(lost)[:, None])}

    return benchmark.World(draw, {"lane": np.array(lost)}, {"lane": 0.05})


def test_safe_models_up_to_the_first_unsafe_one_are_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "RESAMPLINGS", 2)
    found = benchmark.row("x", fixed(0.01, 0.02, 0.2, 0.01), 2000)
    for bound in ("betting", "normal", "Bernstein"):
        assert found[f"{bound}, wrong %"] == 0
        assert found[f"{bound}, safe promised"] == 2
    assert found["safe models in order"] == 2


def test_a_promise_that_does_not_hold_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESAMPLINGS", 2)
    seeming, truth = fixed(0.01, 0.02), {"lane": np.array([0.01, 0.06])}
    found = benchmark.row("x", benchmark.World(seeming.draw, truth, {"lane": 0.05}), 2000)
    for bound in ("betting", "normal", "Bernstein"):
        assert found[f"{bound}, wrong %"] == 100
    assert found["wrong by the measured mean %"] == 100
