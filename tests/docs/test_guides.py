"""The pages that people begin with: their code runs as it stands, and the reference is complete."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import taskprune
from taskprune.cost import CachedTimer, LatencyReport, OperatorCall, measure_macs
from taskprune.cost.operator_call import TensorSpec
from taskprune.deployment import latency
from taskprune.restore.process import preserved_rng

ROOT = Path(__file__).parents[2]


def calculating(device: torch.device, folder: Path) -> CachedTimer:
    """Return a clock on which an operator takes as long as its arguments are large."""

    def per_entry(call: OperatorCall) -> int:
        specs = [value for value in call.arguments.values() if isinstance(value, TensorSpec)]
        return 1000 * sum(torch.Size(spec.shape).numel() for spec in specs)

    return CachedTimer(per_entry, str(device), folder=folder)


def by_macs(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> dict[str, LatencyReport]:
    times = {name: 2.0 + measure_macs(model, inputs) / 1e5 for name, model in models.items()}
    return {name: LatencyReport(ms, ms, ms, 5, {}) for name, ms in times.items()}


@pytest.mark.parametrize("page", ["index", "tutorial", "concepts", "how-to", "torch-pruning"])
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        latency, "device_timer", lambda device, folder: calculating(device, folder or tmp_path)
    )
    monkeypatch.setattr(latency, "measure_latency", by_macs)
    monkeypatch.setattr(latency, "in_runtime", lambda model, *_: model)  # it calculates for all
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
