"""The command line refuses in one line what cannot work, before minutes of work."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import taskprune
from taskprune.commands.app import app
from taskprune.driving import demo as demo_module
from taskprune.driving.bundled import bundled_file
from taskprune.errors import LossError

N_COLUMNS = 80


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """Run the command, expect exit code 2 and a single line of error, and return it."""
    result = invoke("demo", *arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    lines: list[str] = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command starts to work."""

    def never(*_arguments: Any, **_keywords: Any) -> Any:
        raise AssertionError("work was started")

    for name in ("evaluate", "fit_teacher"):
        monkeypatch.setattr(demo_module, name, never)


@pytest.mark.parametrize("ratio", ["0", "1", "1.5", "-0.2", "nan"])
def test_a_ratio_out_of_range_is_refused_at_once(ratio: str, tmp_path: Path) -> None:
    line = refused(f"--ratio={ratio}", "--out", tmp_path / "out")
    assert "between 0 and 1" in line
    assert f"Found {float(ratio)!r}" in line
    assert not (tmp_path / "out").exists()


def test_a_share_of_multiply_adds_out_of_range_is_refused_at_once(tmp_path: Path) -> None:
    assert "`macs`" in refused("--macs=-0.5", "--out", tmp_path / "out")


def test_what_is_not_said_is_what_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(demo_module, "run_demo", lambda settings, _console: taken.append(settings))
    assert invoke("demo").exit_code == 0
    assert taken == [demo_module.DemoSettings()]


@pytest.mark.parametrize(("option", "value"), [("steps", "0"), ("steps", "-3"), ("seed", "-1")])
def test_numbers_out_of_range_are_refused_at_once(option: str, value: str, tmp_path: Path) -> None:
    line = refused(f"--{option}={value}", "--out", tmp_path / "out")
    assert f"`{option}` must be a whole number" in line
    assert f"Found {value}" in line


@pytest.mark.parametrize(("option", "value"), [("ratio", "much"), ("steps", "2.5"), ("rate", "1")])
def test_misspelt_options_show_the_usage(option: str, value: str) -> None:
    result = invoke("demo", f"--{option}", value)
    assert result.exit_code == 2
    assert f"--{option}" in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_data_root_is_named(tmp_path: Path) -> None:
    root = tmp_path / "nowhere [1]"
    assert str(root) in refused("--data", root, "--out", tmp_path / "out")


def test_a_data_root_without_a_validation_split_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "images" / "100k" / "train").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    assert str(tmp_path) in refused("--data", tmp_path, "--out", tmp_path / "out")


def test_damaged_labels_are_named(tmp_path: Path) -> None:
    from taskprune.driving.data import RoadScenes, write_bdd100k

    scenes = RoadScenes(2, seed=0, size=(64, 64))
    for split in ("train", "val"):
        write_bdd100k(scenes, tmp_path, split)
    (labels,) = (tmp_path / "labels").rglob("*val*.json")
    labels.write_text(labels.read_text()[:40])
    assert labels.name in refused("--data", tmp_path, "--out", tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"not weights", b"\x10" + bytes(200)])
def test_missing_or_damaged_weights_are_named(content: bytes | None, tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    if content is not None:
        weights.write_bytes(content)
    line = refused("--teacher", weights, "--out", tmp_path / "out")
    assert str(weights) in line
    assert "safetensors file" in line


def test_weights_cut_short_are_named(tmp_path: Path) -> None:
    bundled = bundled_file("teacher_n.safetensors").read_bytes()
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes(bundled[: len(bundled) // 2])
    assert str(weights) in refused("--teacher", weights, "--out", tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused("--out", tmp_path / "file" / "out")
    assert str(tmp_path / "file") in line
    assert "--out" in line


def test_missing_packages_are_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        demo_module, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    line = refused("--out", tmp_path / "out")
    assert "matplotlib" in line
    assert 'pip install "taskprune[driving]"' in line


def test_messages_keep_their_square_brackets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: Any) -> None:
        raise LossError("shape [8, 2] at [bold]")

    monkeypatch.setattr(demo_module, "run_demo", fail)
    assert refused("--out", tmp_path) == "Error: shape [8, 2] at [bold]"


def test_an_interrupt_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "run_demo", interrupt)
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code != 0
    assert "Traceback" not in result.output


def test_the_version_is_shown() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"taskprune {taskprune.__version__}"


def test_help_names_every_option() -> None:
    result = CliRunner(env={"COLUMNS": str(N_COLUMNS)}).invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    for option in ("--data", "--teacher", "--ratio", "--macs", "--steps", "--out", "--seed"):
        assert option in result.stdout


def test_without_a_command_the_help_is_shown() -> None:
    result = invoke()
    assert "demo" in result.output
    assert "Traceback" not in result.output


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("taskprune")
    environment = {**os.environ, "COLUMNS": str(N_COLUMNS)}
    done = subprocess.run(
        [command, "demo", "--ratio", "1.5"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
