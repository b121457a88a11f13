"""Several processes that train one net, each on its own part of every step's images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn


class Team:
    """The processes of a run; alone unless `torch.distributed` is initialised.

    Gradients are averaged in one exchange a step. On a shared CPU this is far steadier than more
    threads: those wait for each other at every operator, processes once a step.

    Attributes:
        rank: Number of this process; 0 logs and saves.
        size: Number of processes.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if together else 0
        self.size = distributed.get_world_size() if together else 1

    @property
    def leads(self) -> bool:
        """Whether this process records and saves."""
        return self.rank == 0

    def start_alike(self, net: nn.Module) -> None:
        """Give all processes the weights of the first."""
        if self.size > 1:
            for value in net.state_dict().values():
                distributed.broadcast(value, src=0)

    @torch.no_grad()
    def average_gradients(self, net: nn.Module) -> None:
        """Replace the gradients of all processes by their mean; absent ones count as zero."""
        if self.size == 1:
            return
        parameters = [p for p in net.parameters() if p.requires_grad]
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        )
        distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for p in parameters:
            # In the parameter's own memory layout, as autograd would have left it.
            p.grad = torch.empty_like(p).copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def leaders(self, value: float) -> float:
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(shared, src=0)
        return float(shared)


@contextmanager
def launched_team() -> Iterator[Team]:
    """Be part of the team of processes that ``torchrun`` started; alone without it.

    The team parts when the block ends without an error: no process leaves while another may still
    wait for its message.
    """
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        yield Team()
        return
    distributed.init_process_group("gloo")
    yield Team()
    distributed.barrier()
    distributed.destroy_process_group()
