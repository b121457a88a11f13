"""The comparison on the fusion net: averages over seeds, differences within a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import quality_tables
from modality import ACROSS, PENALISED, criteria, duels, rows
from modality_plot import draw

CONDITIONS = ("clean", "camera degraded")
AP = {"random": (10.0, 14.0), PENALISED: (30.0, 40.0), "AlterMOMA": (33.0, 41.0)}


def cells() -> list[dict[str, Any]]:
    return [
        {
            "criterion": name,
            "ratio": ratio,
            "seed": seed,
            "steps": steps,
            "removed": {"params": ratio, "macs": 0.4},
            "kept": {"camera": 0.5, "lidar": 0.7},
            "points": {
                condition: {"AP": ap - 5 * bad + steps, "IoU": 80.0}
                for bad, condition in enumerate(CONDITIONS)
            },
        }
        for name, points in AP.items()
        for ratio in (0.8, 0.5)
        for seed, ap in enumerate(points)
        for steps in (0, 20)
    ]


def content(found: list[dict[str, Any]]) -> dict[str, Any]:
    whole = {c: {"AP": 70.0, "IoU": 90.0} for c in CONDITIONS}
    return {"teacher": whole, "rows": rows(found), "duels": duels(found)}


def test_rows_are_means_over_seeds_in_order_of_what_goes() -> None:
    found = rows(cells())
    assert [row["ratio"] for row in found] == [0.5] * 3 + [0.8] * 3
    assert found[0]["criterion"] == "random"
    assert found[0]["before"]["clean"]["AP"] == [12.0, pytest.approx(8**0.5)]
    assert found[0]["after"]["clean"]["AP"][0] == 32.0


def test_differences_are_taken_within_a_seed() -> None:
    found = {(d["ratio"], d["steps"], d["criterion"], d["against"]): d for d in duels(cells())}
    assert len(found) == 8
    assert found[0.5, 20, "AlterMOMA", PENALISED]["clean"] == [2.0, pytest.approx(2**0.5)]


def test_equal_criteria_are_scored_once() -> None:
    for name, make in criteria().items():
        assert make(0, 0.5) == make(0, 0.5)
        assert hash(make(0, 0.5)) == hash(make(0, 0.5))
        assert (make(0, 0.5) == make(1, 0.5)) == (name != "random")
    assert set(ACROSS) < set(criteria())


def test_tables_and_plot_show_every_row(tmp_path: Path) -> None:
    table = quality_tables.modality_table(content(cells()))
    assert table.count("\n") == 2 + 6
    assert "| 50 % | AlterMOMA | 40 % | camera 50, lidar 70 | 37.0 ± 5.7 |" in table
    assert "| +2.0 ± 1.4 |" in quality_tables.modality_duels(content(cells()))
    draw(content(cells()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_what_was_not_fine_tuned_is_left_open() -> None:
    found = content([cell for cell in cells() if not cell["steps"] or cell["ratio"] < 0.8])
    assert "| – | – |" in quality_tables.modality_table(found)


def test_without_fine_tuning_nothing_is_said_of_after(tmp_path: Path) -> None:
    found = content([cell for cell in cells() if not cell["steps"]])
    assert "after" not in quality_tables.modality_table(found)
    draw(found, tmp_path / "plot.png")
