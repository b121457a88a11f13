"""The whole job of ``taskprune demo``, on a handful of images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import taskprune
from taskprune.commands.app import app
from taskprune.driving import demo as demo_module
from taskprune.driving.bundled import bundled_file
from taskprune.driving.data import RoadScenes, write_bdd100k
from taskprune.driving.nets import build_net
from taskprune.driving.teacher import load_teacher
from taskprune.restore.process import preserved_rng

N_COLUMNS = 80
FILES = {"predictions.png", "report.html", "report.json", "student.safetensors"}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (
        ("BATCH_SIZE", 2),
        ("N_CALIBRATION", 4),
        ("N_HELD_OUT", 4),
        ("N_VALIDATION", 4),
        ("N_TRAINING", 4),
        ("LATENCY_REPEATS", 3),
    ):
        monkeypatch.setattr(demo_module, name, number)


def run(*arguments: str | Path) -> str:
    with preserved_rng():
        result = CliRunner(env={"COLUMNS": str(N_COLUMNS)}).invoke(
            app, ["demo", "--steps=1", *(str(argument) for argument in arguments)]
        )
    assert result.exit_code == 0, result.output
    return result.stdout


def printed(metrics: Any) -> str:
    console = Console(width=N_COLUMNS)
    with console.capture() as capture:
        console.print(demo_module.metric_table(metrics))
    return capture.get()


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.slow
def test_the_demo_shows_and_writes_what_it_measured(tmp_path: Path) -> None:
    shown = run("--ratio=0.25", "--macs=1", "--out", tmp_path)
    assert max(len(line) for line in shown.splitlines()) <= N_COLUMNS
    for words in ("the teacher", "prune 25.0%", "distil", "teacher", "pruned", "distilled"):
        assert words in shown
    assert "report.html" in " ".join(shown.split())
    assert "PanopticDrivingNet" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert (tmp_path / "predictions.png").read_bytes()[1:4] == b"PNG"

    report = strict_json(tmp_path / "report.json")
    assert set(report["metrics"]) == {"teacher", "sliced", "pruned", "distilled"}
    assert report["checkpoint_error"] == 0
    before, after = report["prune"]["costs"]["params"]
    assert 0.25 <= 1 - after / before <= 0.255
    assert report["settings"]["ratio"] == 0.25

    student = taskprune.load_checkpoint(tmp_path / "student.safetensors", build_net("n"))
    assert sum(p.numel() for p in student.parameters()) == after
    assert before == sum(p.numel() for p in load_teacher().parameters())


@pytest.mark.slow
def test_the_demo_runs_on_data_of_its_users(tmp_path: Path) -> None:
    root, out = tmp_path / "own [data]", tmp_path / "out"
    for seed, split in enumerate(("train", "val")):
        write_bdd100k(RoadScenes(4, seed=seed), root, split)
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(_bundled_weights())
    shown = run("--data", root, "--teacher", weights, "--out", out)
    assert max(len(line) for line in shown.splitlines()) <= N_COLUMNS
    assert {path.name for path in out.iterdir()} == FILES
    assert strict_json(out / "report.json")["settings"]["data"] == "own [data]"


def _bundled_weights() -> bytes:
    content: bytes = bundled_file("teacher_n.safetensors").read_bytes()
    return content


def test_tasks_without_labels_have_no_value() -> None:
    nan = math.nan
    measured = {
        "detection": {"map50": 0.5, "recall": 0.75},
        "drivable": {"miou": 0.9},
        "lane": {"iou": nan, "accuracy": nan},
    }
    shown = printed({"teacher": measured, "pruned": measured})
    assert shown.count("no labels") == 4
    assert "nan" not in shown
    assert "50.0 +0.0" in shown


def test_the_widest_numbers_fit() -> None:
    best = {
        "detection": {"map50": 0.999, "recall": 0.999},
        "drivable": {"miou": 0.999},
        "lane": {"iou": 0.999, "accuracy": 0.999},
    }
    worst = {task: dict.fromkeys(values, 0.0999) for task, values in best.items()}
    assert "10.0 -89.9 " in printed({"teacher": best, "distilled": worst})
