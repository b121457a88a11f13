"""The comparison of criteria: what was stopped goes on, and nothing is measured twice."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import criteria as benchmark
import pytest
from cells import Cells

ARGS = argparse.Namespace(
    subjects=["dense"],
    data=None,
    criteria=["random"],
    keep=None,
    seeds=[0],
    steps=40,
    images=96,
)


class _Bench:
    """Stands in for hours of pruning and training."""

    def __init__(self, subject: Any, seed: int, args: argparse.Namespace) -> None:
        self.key = {"subject": subject.name, "seed": seed, "images": 96, "steps": 40}

    def cells(self, name: str, keeps: Sequence[float]) -> Iterator[dict[str, Any]]:
        for keep in keeps:
            yield {**self.key, "criterion": name, "keep": keep, "removed": {"params": keep}}


def test_a_run_stopped_between_budgets_measures_the_missing_ones_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = SimpleNamespace(name="dense", steps=40, keep=(0.7, 0.5))
    monkeypatch.setattr(benchmark, "subjects", lambda _data: {"dense": subject})
    monkeypatch.setattr(benchmark, "Bench", _Bench)
    monkeypatch.setattr(benchmark, "Cells", lambda name: Cells(name, tmp_path))
    first = _Bench(subject, 0, ARGS).cells("random", [0.7])
    Cells("criteria", tmp_path).append(next(first))

    benchmark.compute(ARGS)
    benchmark.compute(ARGS)

    assert [cell["keep"] for cell in benchmark.cells_of(ARGS)] == [0.7, 0.5]
    assert [row["seeds"] for row in benchmark.rows(benchmark.cells_of(ARGS))] == [1, 1]
