"""Running commands in a folder of one's own, as a user does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from taskprune.commands.app import app
from taskprune.restore.process import preserved_rng

N_COLUMNS = 80

NET = """
import torch, taskprune
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.a, self.b = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 2, 1)

    def forward(self, images):
        features = self.trunk(images).relu()
        return {"a": self.a(features), "b": self.b(features)}

def model():
    return Net()
"""
"""A model alone."""

DATA = """
def data():
    return [torch.rand(4, 3, 8, 8) for _ in range(3)]
"""

TASKS = """
class Closeness:
    def reset(self):
        self.values = []
    def update(self, outputs, batch):
        self.values.append(-outputs["a"].square().mean().item())
    def compute(self):
        return sum(self.values) / len(self.values)

def tasks():
    return {
        "a": taskprune.Task(lambda out, batch: out["a"].square().mean(), metric=Closeness()),
        "b": taskprune.Task(lambda out, batch: (out["b"] - 1).square().mean()),
    }

def validation():
    return [torch.rand(4, 3, 8, 8)]
"""

PICTURES = """
def pictures(models):
    with open("seen.png", "wb") as file:
        file.write(b"\\x89PNG\\r\\n\\x1a\\n" + ", ".join(models).encode())
    assert not any(net.training for net in models.values())
    return {"What they see": "seen.png"}
"""


def run(*arguments: str | Path) -> str:
    """Run a command that must work, and return what it prints."""
    with preserved_rng():
        result = CliRunner(env={"COLUMNS": str(N_COLUMNS)}).invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert max((len(line) for line in result.stdout.splitlines()), default=0) <= N_COLUMNS
    return result.stdout


def as_json(*arguments: str | Path) -> Any:
    """Run a command and parse its JSON."""
    with preserved_rng():
        result = CliRunner().invoke(app, [*(str(a) for a in arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: str | Path) -> str:
    """Run a command that cannot work, and return its one paragraph."""
    with preserved_rng():
        result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr
