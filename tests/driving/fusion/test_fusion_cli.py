"""``taskprune-driving fusion``: train, go on, measure, and fail in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taskprune.driving.cli import app
from taskprune.driving.fusion import commands


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["fusion", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_a_net_is_trained_resumed_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "N_VALIDATION", 2)
    recipe: list[str | Path] = [
        "train",
        "--out",
        tmp_path / "run",
        "--init",
        "teacher",
        "--batch-size",
        "2",
    ]
    run(*recipe, "--steps", "1")
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert records[-1]["validation"]["drivable"]["iou"] > 0.5, "it starts trained"
    run(*recipe, "--steps", "1", "--resume")
    weights, report = tmp_path / "run/net.safetensors", tmp_path / "metrics.json"
    shown = run("evaluate", "--weights", weights, "--lidar", "0.5", "--out", report)
    assert "2 frames" in shown
    assert set(json.loads(report.read_text())) == {"detection", "drivable"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--steps", "1", "--minutes", "1"], "Exactly one"),
        (["train", "--scale", "xxl"], "'l', 'n'"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--init", "no.safetensors"], "no.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_clear_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in run(*arguments, "--out", tmp_path / "run", code=2)


def test_degradation_out_of_range_is_refused() -> None:
    assert "between 0 and 1" in run("evaluate", "--camera", "2", code=2)
