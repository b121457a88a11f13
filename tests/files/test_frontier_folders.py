"""A frontier's folder says what was measured, or is refused: whatever befell its files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_files import damaged_bytes, damaged_json, outcomes, put
from torch import nn

from taskprune import Budget, prune
from taskprune.errors import CheckpointError
from taskprune.files import sealed, unsealed
from taskprune.front.point_folder import FILE_NAME, Measured, PointFolder

IDENTITY = {"model": "Net, weights 0", "tasks": {"lane": [1.0, "loss", "Metric"]}}
ORIGINAL = Measured(100, 1000, {"lane": 0.75, "kind": float("nan")})
BUDGET = Budget(params=0.7)


@pytest.fixture
def folder(tmp_path: Path) -> PointFolder:
    made = PointFolder(tmp_path, IDENTITY)
    made.begin(ORIGINAL)
    return made


def same(found: Measured | None, wanted: Measured) -> bool:
    """Compare as text, since NaN does not equal itself."""
    return found is not None and json.dumps(asdict(found)) == json.dumps(asdict(wanted))


def test_what_was_measured_comes_back(folder: PointFolder) -> None:
    assert same(folder.original(), ORIGINAL)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = prune(net, example_inputs=torch.rand(2, 4), budget=BUDGET, importance="magnitude")
    point = Measured(70, 700, {"lane": 0.5}, (2.0, 1.5))
    path = folder.keep(BUDGET, result.model, result.plan, point)
    assert folder.point(BUDGET) == (point, result.plan)
    assert folder.point(Budget(params=0.5)) is None
    other = PointFolder(folder.folder, {**IDENTITY, "model": "Net, weights 1"})
    with pytest.raises(CheckpointError, match="is no point of this frontier"):
        other.point(BUDGET)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="damaged"):
        folder.point(BUDGET)


@pytest.mark.parametrize("changes", [{"params": -1}, {"latency_ms": [1.0, 0.0]}])
def test_what_cannot_be_is_refused(folder: PointFolder, changes: dict[str, Any]) -> None:
    path = folder.folder / FILE_NAME
    content = unsealed(json.loads(path.read_bytes()))
    content["original"] |= changes
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(CheckpointError, match="Expected sizes and times above zero"):
        folder.original()


def test_damage_is_refused_whoever_did_it(folder: PointFolder) -> None:
    path = folder.folder / FILE_NAME
    data = path.read_bytes()

    def loads(changed: bytes) -> bool:
        put(path, changed)
        return same(folder.original(), ORIGINAL)

    assert outcomes(damaged_bytes(data, 1000, seed=0), loads)["refused"] > 800

    def loads_sealed(text: str) -> bool:
        try:
            resealed = json.dumps(sealed(json.loads(text)))
        except (ValueError, TypeError, RecursionError):
            resealed = text
        return loads(resealed.encode())

    content = unsealed(json.loads(data))
    counts = outcomes(damaged_json(content, 600, seed=1), loads_sealed, may_differ=True)
    assert counts["refused"] > 300
