"""What of each modality goes, for the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from rich.table import Table

from taskprune.calling.modality import FUSION
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import modality_of_tensors
from taskprune.plan.plan import PruningPlan
from taskprune.terminal import text_table


@dataclass(frozen=True, slots=True)
class ModalityLine:
    """What a plan leaves of one modality.

    Attributes:
        modality: Its name, or ``"fusion"``.
        groups: Prunable groups.
        channels: Their channels.
        dropped: How many of these go.
        params: Parameters of its modules before and after.
    """

    modality: str
    groups: int
    channels: int
    dropped: int
    params: tuple[int, int]


def modality_lines(groups: CouplingGroups, plan: PruningPlan) -> tuple[ModalityLine, ...]:
    """Return a line for every modality that the groups are labelled with, the fusion last."""
    if not groups.modalities:
        return ()
    of_tensor = modality_of_tensors(groups)
    after = plan.pruned_shapes
    lines = []
    for label in (*(modality.name for modality in groups.modalities), FUSION):
        own = [decision for decision in plan.groups if decision.modality == label]
        tensors = [name for name in groups.parameter_names if of_tensor[name] == label]
        lines.append(
            ModalityLine(
                modality=label,
                groups=len(own),
                channels=sum(decision.n_channels for decision in own),
                dropped=sum(len(decision.drop) for decision in own),
                params=(
                    sum(prod(groups.shapes[name]) for name in tensors),
                    sum(prod(after[name]) for name in tensors),
                ),
            )
        )
    return tuple(lines)


def modality_table(lines: Iterable[ModalityLine]) -> Table:
    """What belongs to each modality, and what of it goes."""
    headings = ("modality", "groups", "channels", "dropped", "parameters", "left")
    counted = ((line, (line.groups, line.channels, line.dropped, *line.params)) for line in lines)
    rows = ((line.modality, *(f"{n:,}" for n in counts)) for line, counts in counted)
    return text_table("Channels by modality", headings, rows)
