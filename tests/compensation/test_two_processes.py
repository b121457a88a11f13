"""Two processes with half of the batches each compensate as one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compensating_child import weights
from launched_processes import needs_processes, run_in_processes
from nets_of_readers import images, sequences

CHILD = Path(__file__).with_name("compensating_child.py")


@pytest.mark.slow
@needs_processes
def test_two_processes_compensate_as_one(tmp_path: Path) -> None:
    run_in_processes(CHILD, tmp_path)
    alone = weights(images(), sequences())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, expected in alone.items():
        # The same bits in every process, so that all of them go on with one model.
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, rtol=0, atol=1e-10)
