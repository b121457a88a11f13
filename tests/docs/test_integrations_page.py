"""The page on integrations says what happens; its blocks on YOLO run in the child of that test."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from architectures.torchvision_import import import_torchvision

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
MISSING = [n for n in ("transformers", "lightning") if importlib.util.find_spec(n) is None]


@pytest.mark.filterwarnings("ignore")  # those of libraries that are not ours
@pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed")
def test_the_page_on_integrations_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torchvision"):
        import_torchvision()  # which both libraries import as well, as it is
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 7
    assert {"config.json", "plan.json", "report.json", "README.md"} <= {
        path.name for path in (tmp_path / "small-bert").iterdir()
    }
