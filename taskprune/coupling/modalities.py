"""Which modality each group, parameter and operator belongs to, and where modalities meet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from taskprune.calling.modality import FUSION, Modality
from taskprune.calling.outputs import matching_paths
from taskprune.coupling.groups import CouplingGroup, CouplingGroups
from taskprune.errors import InputError
from taskprune.graph.reach import Inputs


def labelled(
    groups: CouplingGroups, modalities: Sequence[Modality] | None = None
) -> CouplingGroups:
    """Return the groups with the modality of each.

    A group belongs to the modality in which all that *makes* its channels lies: below the
    modality's module, or applied to its inputs and to those of no other. What is made in several,
    or outside of all, belongs to :data:`~taskprune.calling.modality.FUSION`.

    Args:
        groups: From :func:`couple`.
        modalities: At least two, all declared by modules or all by inputs. ``None``: those of
            :func:`find_modalities`.

    Raises:
        InputError: There are fewer than two, or the model lacks a module or an input.
    """
    known = find_modalities(groups) if modalities is None else tuple(modalities)
    _check(groups, known)
    of_tensors = _Labels(groups, known).of_tensors
    own = tuple(replace(group, modality=of_tensors(_makers(group))) for group in groups)
    return replace(groups, groups=own, modalities=known)


def find_modalities(groups: CouplingGroups) -> tuple[Modality, ...]:
    """Return a modality for each input that alone reaches what makes some group, in their order.

    Inputs that only ever meet others, such as masks and projection matrices, are none.
    """
    reach = groups.input_reach
    made_from = [_reached(groups, _makers(group)) for group in groups]
    alone = {path for inputs in made_from if len(inputs) == 1 for path in inputs}
    return tuple(Modality(path, inputs=path) for path in reach.inputs if path in alone)


def modality_of_groups(
    groups: CouplingGroups, modalities: Sequence[Modality] | None = None
) -> dict[str, str]:
    """Return the modality of each group by name, or :data:`~taskprune.calling.modality.FUSION`.

    Args:
        groups: The model's groups.
        modalities: Those to tell apart. Default: the ones that the groups were labelled with, or
            else those found from the inputs, see :func:`labelled`.
    """
    return {group.name: group.modality for group in for_criterion(groups, modalities)}


def for_criterion(groups: CouplingGroups, modalities: Sequence[Modality] | None) -> CouplingGroups:
    """Return the groups with labels: of these modalities, or else those they have, or inputs."""
    if modalities is None and groups.modalities:
        return groups
    return labelled(groups, modalities)


def modality_of_tensors(groups: CouplingGroups) -> dict[str, str]:
    """Return the modality of each parameter and buffer of labelled groups, by name."""
    labels = _Labels(groups, groups.modalities)
    return {name: labels.of_tensors((name,)) for name in groups.shapes}


def modality_of_work(groups: CouplingGroups) -> tuple[str, ...]:
    """Return the modality of each of ``groups.macs``, of labelled groups."""
    labels = _Labels(groups, groups.modalities)
    return tuple(labels.of(f"{work.module}.", work.inputs) for work in groups.macs)


def mask_points(groups: CouplingGroups, modality: Modality) -> tuple[str, ...]:
    """Return the modules whose outputs are all that the rest of the network gets of a modality.

    For one declared by its inputs they are the last ones that work on these alone.

    Raises:
        InputError: A tensor of the modality meets those of others that is no module's output, or
            none does. Raised before anything ran.
    """
    if modality.module is not None:
        return (modality.module,)
    labels = _Labels(groups, groups.modalities)
    points: dict[str, None] = {}
    for meeting in groups.input_reach.meetings:
        if labels.of_inputs(meeting.carried) != modality.name:
            continue
        if labels.of_inputs(meeting.joined) == modality.name:
            continue
        own = [
            path for path, all_of in meeting.modules if labels.of_inputs(all_of) == modality.name
        ]
        if not own:
            raise InputError(
                f"What `{modality.name}` hands to the others at {meeting.operator} "
                f"({meeting.source}) is not the output of a module of its own, so it cannot be "
                "masked. Declare the modalities by modules: "
                f"Modality({modality.name!r}, module='path of its branch')."
            )
        points[own[0]] = None
    if not points:
        raise InputError(
            f"Nothing of `{modality.name}` ({', '.join(modality.input_paths)}) meets another "
            "modality in the traced forward, so there is nothing to mask."
        )
    return tuple(points)


def _makers(group: CouplingGroup) -> tuple[str, ...]:
    """Return the tensors whose entries make a group's channels; all of its, if none does."""
    own = tuple(member.name for member in group.members if member.produces)
    return own or tuple(member.name for member in group.members)


def _reached(groups: CouplingGroups, names: Iterable[str]) -> Inputs:
    """Return the inputs of all that some parameters and buffers are applied to."""
    tensors = groups.input_reach.tensors
    return frozenset[str]().union(*(tensors.get(name, frozenset()) for name in names))


class _Labels:
    """Tells which modality something belongs to."""

    def __init__(self, groups: CouplingGroups, modalities: Sequence[Modality]) -> None:
        self.groups = groups
        self.modules = [(m.name, f"{m.module}.") for m in modalities if m.module is not None]
        paths = groups.input_reach.inputs
        self.named = {
            path: m.name
            for m in modalities
            for wanted in m.input_paths
            for path in matching_paths(wanted, paths)
        }

    def of(self, path: str, inputs: Inputs) -> str:
        """Return the label of what lies at a path and works on some inputs."""
        for name, prefix in self.modules:
            if path.startswith(prefix):
                return name
        return self.of_inputs(inputs)

    def of_inputs(self, inputs: Iterable[str]) -> str:
        """Return the modality to which all inputs belong that belong to any."""
        found = {self.named[path] for path in inputs if path in self.named}
        return found.pop() if len(found) == 1 else FUSION

    def of_tensors(self, names: Iterable[str]) -> str:
        """Return the modality of several parameters and buffers together."""
        if self.modules:
            found = {self.of(name, frozenset()) for name in names}
            return found.pop() if len(found) == 1 else FUSION
        return self.of_inputs(_reached(self.groups, names))


def _check(groups: CouplingGroups, modalities: Sequence[Modality]) -> None:
    names = [modality.name for modality in modalities]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(
            "Redundancy between modalities takes at least two, each with a name of its own. Found "
            f"{names}. Declare them: Modality('camera', module='camera_branch'), or "
            f"Modality('camera', inputs='images'). Inputs: {_inputs(groups)}."
        )
    by_module = [m for m in modalities if m.module is not None]
    if by_module and len(by_module) < len(modalities):
        raise InputError(
            "Declare all modalities by modules or all by inputs: where they meet cannot be told "
            f"from one of each. Found `module=` for {[m.name for m in by_module]} alone."
        )
    for modality in by_module:
        _check_module(groups, modality, by_module)
    owner: dict[str, str] = {}
    for modality in modalities:
        for wanted in modality.input_paths:
            paths = matching_paths(wanted, groups.input_reach.inputs)
            if not paths:
                raise InputError(
                    f"Modality `{modality.name}` has the input `{wanted}`; the model was traced "
                    f"without one of that name. Inputs: {_inputs(groups)}."
                )
            for path in paths:
                if owner.setdefault(path, modality.name) != modality.name:
                    raise InputError(
                        f"Input `{path}` is named by `{owner[path]}` and by `{modality.name}`. "
                        "Leave out what belongs to several."
                    )


def _check_module(groups: CouplingGroups, modality: Modality, others: Sequence[Modality]) -> None:
    if not any(name.startswith(f"{modality.module}.") for name in groups.shapes):
        children = dict.fromkeys(name.partition(".")[0] for name in groups.shapes)
        raise InputError(
            f"Modality `{modality.name}` has its branch at `{modality.module}`; the model has "
            f"no such module with parameters. It has: {', '.join(children)}."
        )
    inside = [o for o in others if f"{modality.module}".startswith(f"{o.module}.")]
    same = [o for o in others if o is not modality and o.module == modality.module]
    if inside or same:
        raise InputError(
            f"The branch of `{modality.name}`, `{modality.module}`, lies inside that of "
            f"`{(inside or same)[0].name}`. Give each modality a branch of its own."
        )


def _inputs(groups: CouplingGroups) -> str:
    return ", ".join(groups.input_reach.inputs) or "none, as the forward did not call the model"
