"""Run by the distributed test as one of two processes, which learn weights from gradients."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from distill_toys import Scenes, make_net, make_tasks, state
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from taskprune.distillation import DistillSettings, GradNorm, distill

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    student = make_net(1)
    history = distill(
        student,
        make_net(0),
        tasks=make_tasks(),
        data=DataLoader(Scenes(12), batch_size=2, shuffle=True),
        taps=["stage"],
        settings=DistillSettings(steps=6, cpu=True, weighting=GradNorm("stem", learning_rate=0.1)),
    ).history
    save_file(state(student), folder / f"student_{rank}.safetensors")
    (folder / f"weights_{rank}.json").write_text(json.dumps([dict(r.weights) for r in history]))
