"""Prune a small two-task network and train it on: taskprune in forty lines.

Run it with ``python examples/quickstart.py``; it takes a few seconds on a CPU.
"""

import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune


class TwoTaskNet(nn.Module):
    """A shared trunk with a classifier and a segmentation head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(64, 4)
        self.segmenter = nn.Conv2d(64, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        return {
            "quadrant": self.classifier(features.mean((2, 3))),
            "mask": self.segmenter(features)[:, 0],
        }


def batches(n: int, seed: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Noisy images with a bright square; the tasks are its brightness class and its mask."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(n):
        images = 0.2 * torch.randn(16, 3, 24, 24, generator=generator)
        level = torch.randint(0, 4, (16,), generator=generator)
        mask = torch.zeros(16, 24, 24)
        for i, (y, x) in enumerate(torch.randint(0, 16, (16, 2), generator=generator).tolist()):
            mask[i, y : y + 8, x : x + 8] = 1
        images += mask[:, None] * (1 + level)[:, None, None, None] / 2
        result.append((images, {"quadrant": level, "mask": mask}))
    return result


Batch = tuple[Tensor, dict[str, Tensor]]


def quadrant_loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.cross_entropy(outputs["quadrant"], batch[1]["quadrant"])


def mask_loss(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs["mask"], batch[1]["mask"])


LOSSES = {"quadrant": quadrant_loss, "mask": mask_loss}


@torch.no_grad()
def held_out_losses(model: nn.Module) -> dict[str, float]:
    model.eval()
    held_out = batches(4, seed=99)
    return {
        name: statistics.fmean(float(loss(model(b[0]), b)) for b in held_out)
        for name, loss in LOSSES.items()
    }


def main() -> None:
    torch.manual_seed(0)
    model = TwoTaskNet()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in batches(100, seed=0):
        outputs = model.train()(batch[0])
        torch.stack([loss(outputs, batch) for loss in LOSSES.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    tasks = {name: taskprune.Task(loss=loss) for name, loss in LOSSES.items()}
    result = taskprune.prune(model, tasks, ratio=0.5, data=batches(16, seed=1))
    print(result)
    print("teacher  ", held_out_losses(model))
    print("pruned   ", held_out_losses(result.model))
    student = taskprune.distill(
        result.model,
        teacher=model,
        tasks=tasks,
        data=batches(50, seed=2),
        plan=result.plan,
        settings=taskprune.DistillSettings(steps=100, learning_rate=1e-3),
    )
    print("distilled", held_out_losses(student))


if __name__ == "__main__":
    main()
