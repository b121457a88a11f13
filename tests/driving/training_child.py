"""Run by the training test as one of two processes."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from nets_samples import TINY
from test_training import SETTINGS, Samples

from taskprune.driving.nets import PanopticDrivingNet
from taskprune.driving.training import train
from taskprune.driving.training.team import launched_team

if __name__ == "__main__":
    torch.set_num_threads(1)
    with launched_team() as team:
        torch.manual_seed(team.rank)  # different starts: the first process's counts
        out = Path(sys.argv[1]) / str(team.rank)
        net = train(PanopticDrivingNet(TINY), Samples(), settings=SETTINGS, out=out)
        torch.save(net.state_dict(), out / "net.pt")
