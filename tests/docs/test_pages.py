"""Pages show what the results files say, and their code blocks run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {ROOT / "examples" / "yolo.py"})
"""All but the one that needs ultralytics, which `tests/integrations` runs."""
QUICK = {"fusion": ("--quick",)}
"""How examples that take longer than a test may are asked for less."""


def report(name: str = "report") -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_on_the_pages_come_from_the_results_files() -> None:
    pages = report()
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        assert pages.rendered(text) == text, page


def test_the_table_of_operators_is_that_of_the_registry() -> None:
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    release = ".".join(torch.__version__.split(".")[:2])
    if f"torch {release}." not in text:
        pytest.skip(f"the page lists the operators of another torch than {release}")
    assert report("operators").rendered() == text


def test_extending_code_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, cwd=tmp_path)


def test_readme_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs(path: Path) -> None:
    command = [sys.executable, path, *QUICK.get(path.stem, ())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
