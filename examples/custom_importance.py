"""Write your own criterion: any function of (model, groups, evidence) that returns scores.

Run it with ``python examples/custom_importance.py``. This one scores a channel by the smallest norm
among its members, so that a channel goes as soon as one layer hardly uses it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import taskprune


def weakest_link(
    model: nn.Module, groups: taskprune.CouplingGroups, _evidence: taskprune.Evidence
) -> Mapping[str, Tensor]:
    """Return, per group, one score a channel; a lower score goes first."""
    tensors = dict(model.named_parameters())
    scores = {}
    for group in groups:
        norms = []
        for member in group.members:
            if member.name in tensors and tensors[member.name].ndim > 1:
                index = torch.from_numpy(member.index)  # [n_channels, entries a channel]
                weight = tensors[member.name].detach().movedim(member.dim, 0)
                norms.append(weight[index].flatten(1).norm(dim=1))
        scores[group.name] = torch.stack(norms).amin(0)
    return scores


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    images = torch.rand(2, 3, 32, 32)
    result = taskprune.prune(model, None, 0.4, example_inputs=images, importance=weakest_link)
    print(result)
    print(result.plan)


if __name__ == "__main__":
    main()
