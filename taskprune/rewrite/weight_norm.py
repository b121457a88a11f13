"""Weight normalisation ``g * v / |v|`` where entries of ``v`` go.

The norm runs over all inputs of a filter: with fewer of them it is smaller, and what is left of the
filter would grow. The gain takes that on, so that the kept entries of the weight stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from taskprune.plan.decisions import KeptEntries
from taskprune.rewrite.loading import Values
from taskprune.rewrite.surgery import kept_entries_by_name, select


@dataclass(frozen=True, slots=True)
class NormedWeight:
    """A weight that is normalised: names of ``v`` and ``g``, and the dim that keeps its own norms.

    ``dim`` is -1 where there is one norm of all.
    """

    direction: str
    gain: str
    dim: int


def normed_weights(model: nn.Module) -> Iterator[NormedWeight]:
    """Yield the weights of a model that torch normalises, by hook or as a parametrisation."""
    for path, module in model.named_modules():
        lead = f"{path}." if path else ""
        for hook in module._forward_pre_hooks.values():
            if type(hook) is WeightNorm:
                dim = -1 if hook.dim is None else hook.dim
                yield NormedWeight(f"{lead}{hook.name}_v", f"{lead}{hook.name}_g", dim)
        # Not through `_modules`, which in a script module is no dict.
        chains = dict(module.named_children()).get("parametrizations")
        for name, chain in chains.items() if isinstance(chains, nn.ModuleDict) else ():
            if isinstance(chain, nn.ModuleList) and [type(one) for one in chain] == [_WeightNorm]:
                own = f"{lead}parametrizations.{name}.original"
                yield NormedWeight(f"{own}1", f"{own}0", int(chain[0].dim))  # type: ignore[arg-type]


def folded_gains(model: nn.Module, tensors: Iterable[KeptEntries]) -> dict[str, Tensor]:
    """Return the gains, cut, with which the kept entries of normalised weights stay as they are.

    Args:
        model: The model before anything is cut.
        tensors: The dims of its tensors that shrink.

    Returns:
        New data of each gain that has to change.
    """
    kept = kept_entries_by_name(tensors)
    gains: dict[str, Tensor] = {}
    for normed, direction, gain in _found(model):
        cuts, own = kept.get(normed.direction, ()), kept.get(normed.gain, ())
        if any(entries.dim != normed.dim for entries in cuts):
            before = select(norms(direction, normed.dim), own)
            after = norms(select(direction.detach(), cuts), normed.dim)
            gains[normed.gain] = rescaled(select(gain.detach(), own), before, after)
    return gains


def plain_gains(model: nn.Module, tensors: Iterable[KeptEntries], then: Values) -> Values:
    """Return what the tensors of the smaller model hold, but with gains that were only cut.

    Args:
        model: The model before anything is cut.
        tensors: The dims of its tensors that shrink.
        then: Changes values further.
    """
    kept = kept_entries_by_name(tensors)
    gains = {normed.gain: gain.detach() for normed, _, gain in _found(model)}

    def values(name: str, data: Tensor) -> Tensor:
        return then(name, select(gains[name], kept.get(name, ())) if name in gains else data)

    return values


def norms(direction: Tensor, dim: int) -> Tensor:
    """Return the norms that a direction is divided by, shaped like the gain."""
    data = direction.detach()
    return torch.norm_except_dim(data if data.device.type == "mps" else data.double(), 2, dim)


def rescaled(gain: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return the gain that takes on what a norm has lost."""
    ratio = torch.where(before > 0, after / before, 1.0)
    return (gain.detach().to(ratio.dtype) * ratio).to(gain.dtype)


def _found(model: nn.Module) -> Iterator[tuple[NormedWeight, Tensor, Tensor]]:
    """Yield the normalised weights of a model by the first names of their tensors."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    held = dict(model.named_parameters(remove_duplicate=False))
    for normed in normed_weights(model):
        direction, gain = held[normed.direction], held[normed.gain]
        first = replace(normed, direction=names[id(direction)], gain=names[id(gain)])
        yield first, direction, gain
