"""Modalities: the branches of a fusion network, declared like tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError

FUSION = "fusion"
"""Label of groups that belong to no branch: what is computed from several of them, and heads."""


@dataclass(frozen=True)
class Modality:
    """One sensor's branch of a network.

    Attributes:
        name: For example ``"camera"``.
        module: Path of the branch; everything below it belongs to the modality, and its output is
            what the rest of the network gets of it.
    """

    name: str
    module: str

    def __post_init__(self) -> None:
        if not self.name or not self.module or self.name == FUSION:
            raise InputError(
                "A modality needs a name (not 'fusion') and the path of its branch, such as "
                f"Modality('camera', module='camera_branch'). Found {self.name!r}, {self.module!r}."
            )


def check_modalities(model: nn.Module, modalities: Sequence[Modality]) -> tuple[Modality, ...]:
    """Return the modalities if the model has their branches, none inside another.

    Raises:
        InputError: It has not, or fewer than two are declared.
    """
    if len({m.name for m in modalities}) < 2 or len({m.name for m in modalities}) < len(modalities):
        raise InputError(
            "Redundancy between modalities takes at least two, each with a name of its own. Found "
            f"{[m.name for m in modalities]}."
        )
    paths = {path for path, _ in model.named_modules()}
    for modality in modalities:
        if modality.module not in paths:
            raise InputError(
                f"Modality `{modality.name}` has its branch at `{modality.module}`; the model has "
                f"no such module. Its children: {', '.join(n for n, _ in model.named_children())}."
            )
        inside = [o for o in modalities if modality.module.startswith(f"{o.module}.")]
        if inside:
            raise InputError(
                f"The branch of `{modality.name}`, `{modality.module}`, lies inside that of "
                f"`{inside[0].name}`. Give each modality a branch of its own."
            )
    return tuple(modalities)


def modality_of_groups(groups: CouplingGroups, modalities: Sequence[Modality]) -> dict[str, str]:
    """Return the modality of each group by name: where all that *makes* its channels lies.

    What is made in several branches, or outside of all, belongs to :data:`FUSION`.
    """
    return {group.name: _modality(group, modalities) for group in groups}


def _modality(group: CouplingGroup, modalities: Sequence[Modality]) -> str:
    makers = [m.name for m in group.members if m.produces] or [m.name for m in group.members]
    for modality in modalities:
        if all(name.startswith(f"{modality.module}.") for name in makers):
            return modality.name
    return FUSION


@contextmanager
def silenced(model: nn.Module, modality: Modality) -> Iterator[None]:
    """Let the rest of the network see zeros in place of what one branch makes.

    The branch's *output* is masked: with its weights at zero, norms would still let their shifts
    through.
    """

    def silence(_module: nn.Module, _args: Any, output: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor * 0, output)

    handle = model.get_submodule(modality.module).register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()
