"""Score, prune and distil on several processes in one script.

``torchrun --nproc-per-node 2 examples/distributed.py`` (or ``accelerate launch``) splits the data
between two processes; plain ``python`` does all of it in one. It takes a few seconds on a CPU.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import taskprune

Batch = tuple[Tensor, Tensor, Tensor]


class TwoTaskNet(nn.Module):
    """A shared trunk with a classifier and a depth head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.classifier = nn.Linear(32, 4)
        self.depth = nn.Conv2d(32, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        return {"kind": self.classifier(features.mean((2, 3))), "depth": self.depth(features)}


def kind_loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.cross_entropy(outputs["kind"], batch[1])


def depth_loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    return (outputs["depth"] - batch[2]).square().mean()


def dataset(n: int = 64) -> "TensorDataset":
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(n, 3, 8, 8, generator=generator)
    kinds = images.mean((2, 3)).argmax(1)
    return TensorDataset(images, kinds, images.mean(1, keepdim=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for each process's student and plan")
    args = parser.parse_args()
    torch.set_num_threads(1)
    team = PartialState(cpu=True)  # the launcher's process group, or none

    torch.manual_seed(0)  # every process begins with the same teacher
    teacher = TwoTaskNet()
    tasks = {"kind": taskprune.Task(kind_loss), "depth": taskprune.Task(depth_loss)}
    images = dataset()

    # Each process scores its own share; the sums are taken over all of them.
    share = DataLoader(images, batch_size=8)
    mine = [b for i, b in enumerate(share) if i % team.num_processes == team.process_index]
    result = taskprune.prune(teacher, tasks, ratio=0.4, data=mine)

    # A DataLoader is split between the processes; their gradients are averaged.
    student = taskprune.distill(
        result.model,
        teacher=teacher,
        tasks=tasks,
        data=DataLoader(images, batch_size=8 // team.num_processes, shuffle=True),
        plan=result.plan,
        settings=taskprune.DistillSettings(steps=20, learning_rate=1e-3, cpu=True),
    )
    if team.is_main_process:
        print(result)
    if args.out is not None:
        save_file(student.state_dict(), args.out / f"student_{team.process_index}.safetensors")
        result.plan.save(args.out / f"plan_{team.process_index}.json")
    team.destroy_process_group()


if __name__ == "__main__":
    main()
