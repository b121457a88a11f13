"""Starts a script in several processes that find each other, as ``torchrun`` would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent

needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)


def run_in_processes(script: Path, folder: Path, *, n_processes: int = 2) -> None:
    """Run a script on the CPU in each process with `folder` as its argument; wait for all.

    Raises:
        AssertionError: A process failed; the message is what it wrote.
    """
    shared = {
        **child_environment(),
        "WORLD_SIZE": str(n_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(n_processes)
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


def child_environment() -> dict[str, str]:
    """Return the environment of a child: this checkout, one thread, no accelerator."""
    own = (TESTS.parent, TESTS, TESTS.parent / "benchmarks")
    paths = (*map(str, own), os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
