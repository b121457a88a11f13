"""Score our groups with any importance object of Torch-Pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroup, CouplingGroups, IntArray, TensorSlice
from taskprune.errors import InputError
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch, run_forward
from taskprune.importance.distributed import summed
from taskprune.importance.scores import BLIND, ChannelScores, Evidence, GroupScores
from taskprune.restore.borrow import borrowed
from taskprune.restore.lending import lent

if TYPE_CHECKING:
    from torch_pruning.dependency import Group
    from torch_pruning.dependency.node import Node

Role = tuple[str, int]
"""Name of Torch-Pruning's pruning function of a module, and how often it repeats the indices."""

_BY_TYPE: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "prune_batchnorm_out_channels"),
    (nn.LayerNorm, "prune_layernorm_out_channels"),
    (nn.GroupNorm, "prune_groupnorm_out_channels"),
    (nn.modules.instancenorm._InstanceNorm, "prune_instancenorm_out_channels"),
    (nn.PReLU, "prune_prelu_out_channels"),
    (nn.Embedding, "prune_embedding_out_channels"),
)


@dataclass(frozen=True)
class TorchPruningImportance:
    """A criterion of Torch-Pruning (``tp.importance.*``) as one of ours.

    Each coupling group is handed over as a group of Torch-Pruning's with the same layers and
    indices. Criteria that read ``.grad`` find there the gradient of the sum of all tasks' losses,
    times their weights, averaged over the calibration batches; second-order ones that collect
    squared gradients are shown those of each batch; activations are averaged over the batches.
    Under several processes gradients are those of all batches; what a criterion collects by itself
    (squared gradients, activations) is that of its own process. Channels of groups in which the
    criterion scores no layer go last. Members that are not parameters of a convolution, linear,
    norm, PReLU or embedding module are not shown to it. ``OBDCImportance`` hooks into a pruner of
    Torch-Pruning's, which there is none of, and is refused.

    Attributes:
        criterion: For example ``tp.importance.GroupTaylorImportance()``.
        reads_gradients: Set it for criteria of your own that read ``.grad``; those of
            Torch-Pruning are known.
    """

    criterion: Callable[[Any], Tensor | None]
    reads_gradients: bool = False

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError: The criterion scores none of the groups, or cannot work without a pruner.
            InputError, TraceError, LossError: See :func:`taskprune.score`.
        """
        import torch_pruning as tp  # slow to import, and for this criterion alone

        if isinstance(self.criterion, tp.importance.OBDCImportance):
            raise InputError(
                "Expected a criterion of Torch-Pruning that scores a group by itself. Found "
                "OBDCImportance, which only works within a pruner of that library. "
                "GroupHessianImportance is the nearest to it."
            )
        known = (tp.importance.GroupTaylorImportance, tp.importance.GroupHessianImportance)
        gradients: dict[str, Tensor] = {}
        activations: dict[str, Tensor] = {}
        n_batches = 0
        if self.reads_gradients or isinstance(self.criterion, known):
            gradients, n_batches = self._mean_gradients(model, evidence)
        elif isinstance(self.criterion, tp.importance.ActivationImportance):
            activations, n_batches = self._mean_activations(model, evidence)
        modules = dict(model.named_modules(remove_duplicate=False))
        with borrowed(model):
            # In training mode some parametrised weights change whenever they are read.
            model.eval()
            _set_gradients(model, gradients)
            for path, activation in activations.items():
                modules[path]._importance = activation
            found = {
                group.name: self.criterion(torch_pruning_group(modules, group)) for group in groups
            }
        return ChannelScores(
            f"torch_pruning.{type(self.criterion).__name__}",
            BLIND,
            _with_unscored_last(found, groups),
            n_batches,
        )

    def _mean_gradients(
        self, model: nn.Module, evidence: Evidence
    ) -> tuple[dict[str, Tensor], int]:
        parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        weights = [task.weight for task in evidence.tasks.values()]
        # In half precision small gradients would be lost before they are summed.
        wide = {name: torch.promote_types(p.dtype, torch.float32) for name, p in parameters.items()}
        mean = {name: torch.zeros_like(p, dtype=wide[name]) for name, p in parameters.items()}
        collect_batch = getattr(self.criterion, "accumulate_grad", None)

        def visit(batch: Iterator[TaskGradients]) -> None:
            own = {name: torch.zeros_like(p, dtype=wide[name]) for name, p in parameters.items()}
            for found in batch:
                for name, gradient in found.gradients.items():
                    if gradient is not None:
                        own[name] += weights[found.task] * gradient
            for name, gradient in own.items():
                mean[name] += gradient
            if collect_batch is not None:
                _set_gradients(model, own)
                collect_batch(model)

        n_batches = for_each_batch(model, parameters, evidence, visit)
        return {name: summed(total) / n_batches for name, total in mean.items()}, n_batches

    def _mean_activations(
        self, model: nn.Module, evidence: Evidence
    ) -> tuple[dict[str, Tensor], int]:
        """Average what the criterion's hooks leave in the modules after each batch."""
        total: dict[str, Tensor] = {}
        n_batches = 0
        with borrowed(model), torch.no_grad():
            model.eval()
            with self.criterion.compute_importance(model):  # type: ignore[attr-defined]
                for n_batches, batch in enumerate(evidence.batches, start=1):
                    where = f"calibration batch {n_batches}"
                    with lent(batch):
                        run_forward(model, batch, evidence.forward, where=where)
                    for path, module in model.named_modules():
                        if "_importance" in vars(module):
                            own = vars(module)["_importance"]
                            total[path] = total[path] + own if path in total else own
                    evidence.progress(n_batches)
        if not n_batches:
            raise InputError(
                "This criterion looks at activations. Expected at least one calibration batch. "
                "Found none: pass `data=`."
            )
        return {path: own / n_batches for path, own in total.items()}, n_batches


def torch_pruning_group(modules: dict[str, nn.Module], group: CouplingGroup) -> Group:
    """Describe a coupling group as Torch-Pruning does: layers, pruning functions, indices.

    Args:
        modules: The model's modules by path.
        group: The group.
    """
    from torch_pruning.dependency import Dependency, Group
    from torch_pruning.dependency.node import Node
    from torch_pruning.pruner import function

    items: dict[tuple[int, str], tuple[Node, Callable[..., Any], IntArray]] = {}
    # Criteria read the number of channels off the first item, so producers of channels come first.
    for member in sorted(group.members, key=lambda m: (not m.produces, m.name.endswith(".bias"))):
        path = member.name.rpartition(".")[0]
        module = modules.get(path)
        role = None if module is None else _role(module, member)
        if module is None or role is None:
            continue
        name, repeats = role
        index = member.index
        if repeats > 1:
            size = module.weight.shape[member.dim]  # type: ignore[index]
            index = np.concatenate([index + size * k for k in range(repeats)], axis=1)
        prune = getattr(function, name)
        items.setdefault((id(module), name), (Node(module, None, path), prune, index))
    result = Group()
    for node, prune, index in items.values():
        channel = np.repeat(np.arange(group.n_channels), index.shape[1])
        # Some criteria sort the indices in place, but not the channels they belong to.
        order = np.argsort(index.ravel(), kind="stable")
        result.add_dep(Dependency(prune, prune, node, node), index.ravel()[order].tolist())
        result[len(result) - 1].root_idxs = channel[order].tolist()
    return result


def _role(module: nn.Module, member: TensorSlice) -> Role | None:
    if isinstance(module, nn.Linear):
        out = member.dim == 0
        return f"prune_linear_{'out' if out else 'in'}_channels", 1
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_role(module, member)
    for kind, prune in _BY_TYPE:
        if isinstance(module, kind):
            return prune, 1
    return None


def _convolution_role(module: nn.modules.conv._ConvNd, member: TensorSlice) -> Role:
    if module.groups == module.out_channels and module.out_channels > 1:
        return "prune_depthwise_conv_out_channels", 1
    is_weight = not member.name.endswith(".bias")
    out = not is_weight or member.dim == (1 if module.transposed else 0)
    if out:
        return "prune_conv_out_channels", 1
    # Input channels are counted over all convolution groups there; the weight holds one group's.
    return "prune_conv_in_channels", module.groups


def _set_gradients(model: nn.Module, gradients: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name].dtype, copy=True)


def _with_unscored_last(
    found: dict[str, Tensor | None], groups: CouplingGroups
) -> dict[str, GroupScores]:
    scored = {
        name: scores.detach().double().cpu()
        for name, scores in found.items()
        if scores is not None and scores.numel()
    }
    if not scored and groups.groups:
        raise InputError(
            "The Torch-Pruning criterion found no layer to score in any of the "
            f"{len(groups)} groups. Choose one for the kinds of layers that the model has."
        )
    highest = max((float(scores.max()) for scores in scored.values()), default=0.0)
    last = highest + abs(highest) + 1.0
    return {
        # Reductions over flattened layers come out longer; only the first n_channels are in use.
        group.name: GroupScores.blind(
            scored[group.name][: group.n_channels]
            if group.name in scored
            else torch.full((group.n_channels,), last, dtype=torch.float64, device="cpu")
        )
        for group in groups
    }
