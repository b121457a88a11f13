"""A model to make smaller, and what it must go on doing.

`taskprune inspect`, `prune`, `evaluate` and the other commands read this file. It runs as it
stands: replace what the functions return by your own, one after the other. Only `model` is needed.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import taskprune


def model() -> nn.Module:
    """Return the trained model: build it and load its weights, the same in every call."""
    net = Net()
    # net.load_state_dict(torch.load("weights.pt", weights_only=True))
    train(net)  # some seconds, so that what the commands say of this example means something
    return net


def data() -> Iterable[Any]:
    """Return batches to learn from what channels are worth, and to train on: a DataLoader.

    A batch is `(inputs, targets)`, a tensor, or a dict of keyword arguments of the model. For any
    other, add a function `forward(model, batch)` that calls the model. Labels are only needed by
    the losses of the tasks below. Without this function channels are ranked by their weights.
    """
    return [batch(seed) for seed in range(16)]


def tasks() -> dict[str, taskprune.Task]:
    """Return what the model is for: for each task a loss, and perhaps a metric, higher is better.

    A task that may lose no more than so much of its metric says so: `tolerance=0.02`. Without this
    function every output is a task, and its channels are worth what they change in it.
    """
    return {
        "colour": taskprune.Task(loss=colour_loss, metric=ColourAccuracy()),
        "mask": taskprune.Task(loss=mask_loss, metric=MaskOverlap()),
    }


def validation() -> Iterable[Any]:
    """Return batches to measure the metrics on, none of which are in `data`."""
    return [batch(seed) for seed in range(100, 104)]


# Add `example()` to return what the model will be called with once it is deployed, if that has
# another size than the batches of `data`: a tensor, a tuple of arguments or a dict of keywords; and
# `pictures(models)` for the page of a run: PNG or JPEG files by caption, of what models by name do.


# What stands in for your own from here on: a network that finds a square and tells its colour.


class Net(nn.Module):
    """Two tasks on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.neck = nn.Conv2d(32, 32, 3, padding=1)
        self.mask = nn.Conv2d(32, 1, 1)
        self.colour = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the square's mask at a quarter of the size, and scores of its colours."""
        features = self.trunk(images)
        return {
            "mask": self.mask(F.relu(self.neck(features))),
            "colour": self.colour(features.amax((2, 3))),
        }


def batch(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Make 16 images of a square each. Shape of the images ``[16, 3, 32, 32]``."""
    draw = torch.Generator("cpu").manual_seed(seed)
    images = torch.rand(16, 3, 32, 32, generator=draw, device="cpu") * 0.8
    colour = torch.randint(0, 3, (16,), generator=draw, device="cpu")
    left, top = torch.randint(0, 6, (2, 16), generator=draw, device="cpu")
    mask = images.new_zeros(16, 1, 8, 8)
    for i in range(16):
        x, y = int(left[i]), int(top[i])
        images[i, colour[i], 4 * y : 4 * y + 12, 4 * x : 4 * x + 12] += 0.4
        mask[i, 0, y : y + 3, x : x + 3] = 1
    return images, {"colour": colour, "mask": mask}


def colour_loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
    """Cross entropy of the colour."""
    return F.cross_entropy(outputs["colour"], batch[1]["colour"])


def mask_loss(outputs: dict[str, Tensor], batch: Any) -> Tensor:
    """Binary cross entropy of each position of the mask, where squares are rare."""
    found = outputs["mask"]
    weight = found.new_tensor(4.0)
    return F.binary_cross_entropy_with_logits(found, batch[1]["mask"], pos_weight=weight)


class ColourAccuracy:
    """Fraction of the colours that are right."""

    def reset(self) -> None:
        self.right = self.n = 0

    def update(self, outputs: dict[str, Tensor], batch: Any) -> None:
        self.right += int((outputs["colour"].argmax(1) == batch[1]["colour"]).sum())
        self.n += len(batch[0])

    def compute(self) -> float:
        return self.right / self.n


class MaskOverlap:
    """Intersection over union of the masks."""

    def reset(self) -> None:
        self.both = self.either = 0

    def update(self, outputs: dict[str, Tensor], batch: Any) -> None:
        found, labelled = outputs["mask"] > 0, batch[1]["mask"] > 0
        self.both += int((found & labelled).sum())
        self.either += int((found | labelled).sum())

    def compute(self) -> float:
        return self.both / self.either


def train(net: nn.Module) -> None:
    """Train for a few passes."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for seed in range(40):
        images, targets = batch(1000 + seed)
        outputs = net(images)
        loss = colour_loss(outputs, (images, targets)) + mask_loss(outputs, (images, targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
