"""What a person sees below a notebook's cell while something takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NET = """
import torch
import taskprune
from taskprune import DistillSettings

net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
data = [torch.randn(8, 4) for _ in range(3)]
"""
PRUNE = "result = taskprune.prune(net, None, 0.3, data=data)"
DISTILL = """
student = taskprune.distill(
    result.model, teacher=net, tasks={"all": taskprune.Task(lambda y, _: y.square().mean())},
    data=data, plan=result.plan, settings=DistillSettings(steps=2, cpu=True),
)
"""
STOP = "taskprune.prune(net, None, 0.3, data=[torch.randn(8, 5)])"


def test_a_line_below_the_cell_says_how_far_it_is_and_how_it_ended(tmp_path: Path) -> None:
    sources = (NET, PRUNE, "result", DISTILL, STOP)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError, match="Check that the loader yields"):
        client.execute()
    _, pruned, result, distilled, stopped = notebook.cells
    assert [_line(cell) for cell in (pruned, distilled, stopped)] == [
        "Pruning: done",
        "Distilling: done",
        "Pruning: stopped",
    ]
    assert "parameters" in result.outputs[0]["data"]["text/html"]


def _line(cell: Any) -> str:
    """Return the only line that a cell shows, without the time."""
    (shown,) = (output["data"]["text/plain"] for output in cell.outputs if "data" in output)
    line, _, seconds = str(shown).partition(" after ")
    assert seconds.endswith(" s")
    return line
