"""Network Slimming: the scale of the batch norm that a channel passes through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.channel_index import ChannelIndex, Members
from taskprune.importance.scores import ChannelScores, Evidence, unscored_last


@dataclass(frozen=True)
class BatchNormScaleImportance:
    r"""Mean of :math:`|\gamma|` over the batch norms that hold the channel.

    The published method looks at one norm at a time and trains with an L1 penalty on the scales
    first; the mean over the norms of a coupled channel is ours. Channels that no batch norm scales
    go last, as the method does not prune them.

    References:
        Liu et al., *Learning Efficient Convolutional Networks through Network Slimming*, ICCV 2017,
        arXiv:1708.06519.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, _evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel; the evidence is not looked at.

        Raises:
            InputError: No group has a batch norm with a scale.
        """
        scales = {
            f"{path}.weight" if path else "weight"
            for path, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
        }

        def of_norms(group: CouplingGroup) -> Members:
            return [member for member in group.members if member.name in scales]

        index = ChannelIndex(groups, of_norms)
        parameters = index.find(dict(model.named_parameters()))
        if not parameters and groups.groups:
            raise InputError(
                "`bn_scale` looks at the scales of batch norms. Found none with `affine=True` in "
                f"any of the {len(groups)} groups. Choose a criterion for any layer, such as "
                "importance='magnitude'."
            )
        absolute = {n: p.detach().double().abs() for n, p in parameters.items()}
        cpu = torch.device("cpu")
        count = index.sums({n: torch.ones_like(a) for n, a in absolute.items()}, cpu)
        sums = index.sums(absolute, cpu)
        return ChannelScores.of_all_tasks(
            "bn_scale", index.split(unscored_last(sums / count.clamp_min(1), count > 0))
        )
