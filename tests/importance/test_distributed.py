"""Two processes with half of the batches each score as one process with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_made import batches
from launched_processes import needs_processes, run_in_processes
from scoring_child import scores

CHILD = Path(__file__).with_name("scoring_child.py")


@pytest.mark.slow
@needs_processes
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    run_in_processes(CHILD, tmp_path)
    data = batches(5)
    alone = scores(data, data[1])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, expected in alone.items():
        for key in ("total", "per_task"):
            # The same bits in every process, so that all of them make the same plan.
            assert torch.equal(first[name][key], second[name][key]), name
            torch.testing.assert_close(
                first[name][key],
                expected[key],
                rtol=1e-5,
                atol=1e-12,
                msg=lambda text, name=name: f"{name}: {text}",  # type: ignore[misc]
            )
        assert first[name]["n_batches"] == expected["n_batches"], name
