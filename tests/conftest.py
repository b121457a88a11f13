"""Shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch

# The suite runs on all cores already. Kernels that each ask for all of them again, here and in the
# processes that tests start, would wait for one another most of the time.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _processor_as_found() -> Iterator[None]:
    """Every test doubles as one for side effects on the processor's floating-point mode."""
    yield
    flushed = bool((torch.tensor([1e-39]) * 1.0 == 0).item())
    if flushed:
        torch.set_flush_denormal(False)
    assert not flushed, "denormal numbers are flushed to zero after this test"


@pytest.fixture(autouse=True)
def _accelerate_as_new() -> Iterator[None]:
    """Whoever makes an Accelerator, as a Trainer does, leaves it to the whole process."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        for kind in (state.AcceleratorState, state.GradientState, state.PartialState):
            kind._shared_state.clear()
