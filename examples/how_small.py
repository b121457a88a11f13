"""How small can the network of the quickstart get, and what can be promised of the one picked?

Run it with ``python examples/how_small.py``; it takes some seconds on a CPU.
"""

from collections.abc import Callable

import torch
from quickstart import LOSSES, Batch, TwoTaskNet, batches
from torch import Tensor, nn

import taskprune
from taskprune.promise import PerSample


def is_right(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    return (outputs["quadrant"].argmax(1) == batch[1]["quadrant"]).double()


def overlap(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    found, truth = outputs["mask"] > 0, batch[1]["mask"] > 0.5
    return (found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp_min(1)


SCORES = {"quadrant": is_right, "mask": overlap}


class Mean:
    """A metric that is the mean over samples."""

    def __init__(self, score: Callable[[dict[str, Tensor], Batch], Tensor]) -> None:
        self.score = score
        self.reset()

    def reset(self) -> None:
        self.seen: list[float] = []

    def update(self, outputs: dict[str, Tensor], batch: Batch, /) -> None:
        self.seen += self.score(outputs, batch).tolist()

    def compute(self) -> float:
        return sum(self.seen) / len(self.seen)


def scores(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    outputs = model(batch[0])
    return {task: score(outputs, batch) for task, score in SCORES.items()}


def main() -> None:
    torch.manual_seed(0)
    model = TwoTaskNet()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in batches(100, seed=0):
        outputs = model.train()(batch[0])
        torch.stack([loss(outputs, batch) for loss in LOSSES.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    tasks = {
        name: taskprune.Task(loss, metric=Mean(SCORES[name]), tolerance=0.02)
        for name, loss in LOSSES.items()
    }
    frontier = taskprune.frontier(
        model,
        tasks,
        batches(4, seed=1),
        validation=batches(8, seed=2),
        budgets=[taskprune.Budget(macs=part) for part in (0.5, 0.3, 0.2)],
    )
    print(frontier)
    print("By what was measured:", frontier.pick())
    held_out = PerSample(batches(50, seed=3), scores)
    print("With a promise:", frontier.pick(samples=held_out, confidence=0.95))


if __name__ == "__main__":
    main()
