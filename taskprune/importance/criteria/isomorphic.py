"""Isomorphic ranking: channels compete only with those of groups built alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError
from taskprune.importance.criteria.disparse import places
from taskprune.importance.criteria.taylor import TaylorImportance
from taskprune.importance.scores import ChannelScores, Evidence, Importance

Shape = tuple[tuple[str, int], ...]
"""What a group is made of: kinds of members, and how many of each."""


@dataclass(frozen=True)
class IsomorphicImportance:
    """Any criterion's scores, each replaced by its place among the groups of the same structure.

    A global threshold then takes the same share of each class of structures, whatever the scale
    of the scores in it. Two groups are isomorphic here if they have the same number of members of
    each kind of module, tensor and dim, whatever their sizes; the paper compares the topology of
    the sub-networks that go together, of which this is our reading.

    Attributes:
        criterion: What ranks within a class.

    References:
        Fang et al., *Isomorphic Pruning for Vision Models*, ECCV 2024, arXiv:2407.04616.
    """

    criterion: Importance = field(default_factory=TaylorImportance)

    def __call__(
        self, model: nn.Module, groups: CouplingGroups, evidence: Evidence, /
    ) -> ChannelScores:
        """Score every channel.

        Raises:
            InputError: The inner criterion does not return a whole record.
        """
        # Places are known only at the end, so calibration cannot stop on them.
        found = self.criterion(model, groups, evidence)
        if not isinstance(found, ChannelScores):
            raise InputError(
                "IsomorphicImportance needs a criterion that returns `ChannelScores`. Found "
                f"{type(found).__name__} from {self.criterion!r}."
            )
        total: dict[str, Tensor] = {}
        for names in isomorphic_classes(model, groups):
            sizes = [groups[name].n_channels for name in names]
            ranked = places(torch.cat([found.total[name] for name in names]))
            total |= zip(names, torch.split(ranked, sizes), strict=True)
        return replace(
            found,
            criterion=f"isomorphic({found.criterion})",
            total=total,
            conflict={},
            pair_conflict={},
            # Places are no squares of effects that could add up.
            correlation=0.0,
        )


def isomorphic_classes(model: nn.Module, groups: CouplingGroups) -> Iterable[list[str]]:
    """Return the names of the groups of each structure."""
    modules = dict(model.named_modules(remove_duplicate=False))
    classes: dict[Shape, list[str]] = defaultdict(list)
    for group in groups:
        classes[_shape(modules, group)].append(group.name)
    return classes.values()


def _shape(modules: dict[str, nn.Module], group: CouplingGroup) -> Shape:
    kinds: Counter[str] = Counter()
    for member in group.members:
        path, _, leaf = member.name.rpartition(".")
        kinds[f"{type(modules.get(path)).__name__}.{leaf}[{member.dim}]"] += 1
    return tuple(sorted(kinds.items()))
