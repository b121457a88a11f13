"""The driving commands from end to end, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taskprune.driving.cli import VALIDATION_SEED, app

SMALL = ["--size", "96x64"]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def failure(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1, "one line, no traceback"
    return result.stderr


def test_scenes_are_written_trained_on_and_measured(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    assert "5 scenes" in run("scenes", "--out", data, "-n", "5", *SMALL)
    run("scenes", "--out", data, "-n", "2", "--split", "val", "--seed", "1", *SMALL)
    recipe: list[str | Path] = [
        "train",
        "--data",
        data,
        "--out",
        out,
        "--init",
        "teacher",
        "--batch-size",
        "2",
    ]
    recipe += ["--workers", "0", *SMALL]
    run(*recipe, "--epochs", "1")
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 3, "five images in batches of two"
    run(*recipe, "--steps", "3", "--resume")

    report = tmp_path / "metrics.json"
    table = run(
        "evaluate", "--weights", out / "net.safetensors", "--data", data, "--out", report, *SMALL
    )
    assert "2 images" in table
    metrics = json.loads(report.read_text())
    assert set(metrics) == {"detection", "drivable", "lane"}
    assert 0 < metrics["drivable"]["miou"] < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "steps"),
        (["train", "--steps", "1", "--minutes", "1"], "Exactly one"),
        (["train", "--steps", "1", "--epochs", "1"], "exclude"),
        (["train", "--steps", "1", "--size", "300"], "320x192"),
        (["train", "--steps", "1", "--size", "300x200"], "multiples of 32"),
        (["train", "--steps", "1", "--scale", "xxl"], "'l', 'n', 's'"),
        (["train", "--steps", "1", "--data", "nowhere"], "nowhere"),
        (["train", "--steps", "1", "--seed", str(VALIDATION_SEED)], "validation scenes"),
        (["train", "--steps", "1", "--init", "no.safetensors"], "no.safetensors"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_clear_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in failure(*arguments, "--out", tmp_path / "run")


@pytest.mark.parametrize("command", [["train", "--steps", "1"], ["scenes"]], ids=lambda c: c[0])
def test_folders_that_cannot_be_made_are_one_clear_line(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = failure(*command, "--out", tmp_path / "file" / "run")
    assert "Expected a folder to write to" in said
    assert "--out" in said


@pytest.mark.parametrize("command", [["evaluate"], ["fusion", "evaluate"]], ids=" ".join)
def test_a_report_that_cannot_be_written_is_refused_before_measuring(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = failure(*command, "--out", tmp_path / "file" / "metrics.json", "--weights", "lost")
    assert "Expected a folder to write to" in said
    assert "is a folder" in failure(*command, "--out", tmp_path, "--weights", "lost")


def test_missing_weights_are_named(tmp_path: Path) -> None:
    assert "lost.safetensors" in failure("evaluate", "--weights", tmp_path / "lost.safetensors")
