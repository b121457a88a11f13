"""Optimal Brain Damage with an empirical diagonal: what the curvature says, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.distributed import summed
from taskprune.importance.scores import ChannelScores, Evidence


@dataclass(frozen=True)
class ObdImportance:
    r"""Second-order saliency, :math:`\frac{1}{2} \sum_{i \in c} w_i^2 \, h_i`.

    With :math:`h_i = E_b[(\partial L_b / \partial w_i)^2]`, the *empirical* Fisher information of
    the batches, for the diagonal of the Hessian (no Hutchinson probes: they would take a second
    backward through the first), and :math:`L` the sum of the tasks' losses times their weights.
    Published for single weights; the sum over the entries of a coupled channel is ours and leaves
    out what they do together.

    References:
        LeCun et al., *Optimal Brain Damage*, NIPS 1989.
    """

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        index = ChannelIndex(groups)
        parameters = index.find(dict(model.named_parameters()))
        weights = [task.weight for task in evidence.tasks.values()]
        sums = torch.zeros(index.n_channels, dtype=torch.float64)

        def visit(batch: Iterator[TaskGradients]) -> None:
            whole: dict[str, Tensor] = {}
            for found in batch:
                for name, gradient in found.gradients.items():
                    if gradient is not None:
                        own = weights[found.task] * _wide(gradient)
                        whole[name] = whole[name] + own if name in whole else own
            squares = {
                name: (_wide(parameters[name].detach()) * gradient).square()
                for name, gradient in whole.items()
            }
            sums.add_(index.sums(squares, sums.device))

        n_batches = for_each_batch(model, parameters, evidence, visit, interim=lambda: sums.clone())
        return ChannelScores.of_all_tasks(
            "obd", index.split(summed(sums) / (2 * n_batches)), n_batches
        )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
