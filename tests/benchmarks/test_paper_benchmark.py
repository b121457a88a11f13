"""The paper's table: the command for a GPU works on a handful of images, and goes on."""

from __future__ import annotations

from pathlib import Path

import paper as benchmark
import pytest
import students
import subjects
from cells import Cells

from taskprune.driving.data import RoadScenes, write_bdd100k

ROW = "task Taylor − conflict, distilled"


def test_a_network_of_a_scale_is_trained_pruned_and_distilled_on_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        write_bdd100k(RoadScenes(6, seed=seed, size=(64, 64)), tmp_path / "data", split)
    monkeypatch.setattr(subjects, "TEACHERS", tmp_path / "teachers")
    monkeypatch.setattr(students, "STUDENTS", tmp_path / "students")
    monkeypatch.setattr(benchmark, "Cells", lambda name: Cells(name, tmp_path))
    options = "--scale n --size 64x64 --teacher-steps 1 --steps 1 --images 2 --seeds 0"
    args = benchmark.arguments([*options.split(), "--data", str(tmp_path / "data"), "--rows", ROW])

    benchmark.compute(args)
    monkeypatch.setattr(benchmark, "Bench", None)  # nothing is measured twice
    benchmark.compute(args)

    cells = Cells("paper", tmp_path).all()
    [row] = benchmark.rows(cells, [{"on": "driving n, data", "times faster": {ROW: 1.5}}])
    assert row["left"]["params"] == pytest.approx(0.673, abs=0.006)
    assert row["change"].keys() == benchmark.ASKED.keys()
    assert row["times faster"] == 1.5
