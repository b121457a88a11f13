"""Blocks of the results page whose files may not be there yet."""

from __future__ import annotations

import json
from pathlib import Path

import fuzzing
import pytest
import report


def test_what_is_not_measured_yet_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = "<!-- results: distillation -->\nold\n<!-- end -->"
    assert "\n*Not measured yet.*\n" in report.rendered(text)


def test_a_file_has_its_own_view_before_that_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    row = {"clock": "wall", "trainer ms": 101.0, "bare loop ms": 100.0}
    row |= {"ratio": 1.01, "standard error": 0.02, "lower quartile": 0.9, "upper quartile": 1.1}
    file = tmp_path / "distillation_overhead.json"
    file.write_text(json.dumps({"rows": [row]}))
    line = "| wall time of a step | 101 ms | 100 ms | 1.01 ± 0.02 | 0.90 to 1.10 |"
    assert line in report.table("distillation_overhead")


def test_recovered_shares_are_shown_per_task_with_a_picture_per_set_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    arms = [
        {
            "on": on,
            "arm": "plain",
            "steps": steps,
            "change": {"lane": [-1.0, 0.5]},
            "recovered": {"lane": share},
        }
        for on, steps, share in (("scenes", 3, [80.0, 5.0]), ("camvid", 2, [None, None]))
    ]
    settings = {"ratio": 0.327, "seeds": [0, 1], "images": 8}
    file = tmp_path / "distillation.json"
    file.write_text(json.dumps({"settings": settings, "arms": arms}))
    shown = report.table("distillation")
    assert "| scenes | plain | 3 | -1.0 ± 0.5 | 80 ± 5 |" in shown
    assert "| camvid | plain | 2 | -1.0 ± 0.5 |  |" in shown
    assert "2 seeds, judged on at most 8 unseen images" in shown
    assert report.table("distillation.plots").count("](images/distillation_") == 2


def test_what_became_of_random_nets_is_counted_with_its_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    nets = [
        {"seed": 0, "kinds": ["Conv"], "prune": "ok", "compensated": True, "error": 2e-16},
        {"seed": 1, "kinds": ["Conv"], "prune": "refused: InputError: No. Or so.", "free": 1},
        {"seed": 2, "kinds": ["Cell"], "prune": "raw: KeyError: 'a|b'", "frozen": {"unknown": 3}},
    ]
    content = fuzzing.summary([{"block": 0, **fuzzing.counted(nets)}])
    (tmp_path / "fuzzing.json").write_text(json.dumps(content))
    assert report.table("fuzzing").startswith("3 nets (seeds 0 to 499), 1 of them compensated")
    assert "| pruned and verified by the front door | 1 | 1 | 0 | 1 |" in report.table(
        "fuzzing.stages"
    )
    assert "| Conv | 2 | 1 | 1 | 0 | 0.0 % |" in report.table("fuzzing.kinds")
    reasons = report.table("fuzzing.reasons")
    assert "| channels: an operator without a rule | 100.0 % of those that stay |" in reasons
    assert "| prune: InputError: No | 1 nets |" in reasons
    assert "| prune: raw: KeyError: 'a\\|b' | 2 |" in report.table("fuzzing.lost")
