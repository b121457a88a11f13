"""Two processes with half of the batches each score as one process with all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_made import batches
from scoring_child import scores

CHILD = Path(__file__).with_name("scoring_child.py")


def launch(folder: Path) -> None:
    """Start the child as ``torchrun`` would, and wait for both processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).parents[2]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            output, _ = child.communicate(timeout=180)
            assert child.returncode == 0, output
    finally:
        for child in children:
            child.kill()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    launch(tmp_path)
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
