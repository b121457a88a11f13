"""Borrow the random number generators and give them back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from taskprune.restore.alone import alone


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the state of Python's, NumPy's and torch's generators on exit, also on error.

    They are those of the process: other threads that borrow them wait, see :func:`alone`.
    """
    with alone():
        python_state = random.getstate()
        numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy state is what users have
        torch_state = torch.get_rng_state()
        cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            torch.set_rng_state(torch_state)
            if cuda_states:
                torch.cuda.set_rng_state_all(cuda_states)
