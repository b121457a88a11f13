"""Run by the distributed test as one of two processes, of which one meets a NaN."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from distill_toys import Scenes, make_net, near_loss, state
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from taskprune.calling.task import Task
from taskprune.distillation import DistillSettings, distill
from taskprune.errors import TrainingError

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    calls: list[int] = []

    def loss(outputs: Any, batch: Any) -> Tensor | None:
        """Be NaN once, in one process, with gradients that are finite everywhere."""
        calls.append(1)
        value = near_loss(outputs, batch)
        assert value is not None
        return value + (math.nan if rank == "1" and len(calls) == 2 else 0.0)

    student = make_net(1)
    try:
        distill(
            student,
            make_net(0),
            tasks={"near": Task(loss)},
            data=DataLoader(Scenes(12), batch_size=2),
            taps=["stage"],
            settings=DistillSettings(steps=3, cpu=True),
        )
    except TrainingError as error:
        (folder / f"said_{rank}.txt").write_text(str(error))
    save_file(state(student), folder / f"student_{rank}.safetensors")
