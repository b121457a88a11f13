"""The pages that people begin with: their code runs as it stands, and the reference is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import taskprune
from taskprune.cost import operator_timer
from taskprune.restore.rng import preserved_rng

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["index", "tutorial", "how-to", "torch-pruning"])
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(operator_timer, "TOTAL_NS", 1)  # what the times are is no matter here
    path = ROOT / "docs" / f"{page}.md"
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {"__name__": page.replace("-", "_")}
    with preserved_rng():
        for block in blocks:
            exec(compile(block, str(path), "exec"), names)


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: taskprune\.(\w+)$", text, re.MULTILINE))
    among_errors = {"TaskPruneError"}
    assert set(taskprune.__all__) - {"__version__"} <= listed | among_errors
    assert "errors" in listed
