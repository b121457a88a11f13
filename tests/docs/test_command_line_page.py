"""The page on the command line says what the commands do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import taskprune
from taskprune.commands import entering
from taskprune.commands.app import app
from taskprune.restore.process import preserved_rng

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
LEFT_OUT = "…"


def run(command: str) -> str:
    """Run a command, and return what it prints on a terminal of 80 columns."""
    name, *arguments = command.split()
    assert name == "taskprune"
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def pattern(shown: str) -> str:
    """Return what a command's output must match, line by line."""
    lines = [line.rstrip() for line in shown.splitlines()]
    parts = [
        r"(?:.*\n)*?" if line == LEFT_OUT else rf"{re.escape(line).replace(LEFT_OUT, '.*')}.*\n"
        for line in lines
    ]
    return "".join(parts)


def test_the_page_on_the_command_line_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    blocks = re.findall(r"```(console|python)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    try:
        with preserved_rng():
            for kind, text in blocks:
                if kind == "console":
                    for command, shown in re.findall(r"\$ (.*)\n((?:[^$].*\n)*)", text):
                        printed = "\n".join(map(str.rstrip, run(command).splitlines())) + "\n"
                        assert re.fullmatch(pattern(shown), printed), (command, printed)
                elif text.startswith("# own.py"):
                    Path("own.py").write_text(text)
                else:
                    exec(compile(text, str(PAGE), "exec"), {})
        assert_the_file_is_the_model()
    finally:
        for name in entering._entered:
            sys.modules.pop(name, None)
        entering._entered.clear()


def assert_the_file_is_the_model() -> None:
    run_folder = Path("runs") / "net-distilled"
    net = sys.modules["net"]
    model = taskprune.load_checkpoint(run_folder / "model.safetensors", net.Net).eval()
    images = net.batch(7)[0][:3]
    with torch.no_grad():
        expected = model(images)
    session = onnxruntime.InferenceSession(run_folder / "model.onnx")
    for name, found in zip(
        ("mask", "colour"), session.run(["mask", "colour"], {"images": images.numpy()}), strict=True
    ):
        np.testing.assert_allclose(found, expected[name], rtol=1e-3, atol=1e-4)
