"""What one modality of a model costs, exactly."""

from __future__ import annotations

from collections.abc import Iterable

from taskprune.calling.modality import FUSION
from taskprune.cost.model import CostModel, parameter_terms
from taskprune.cost.names import of_modality
from taskprune.coupling.groups import CouplingGroups
from taskprune.coupling.modalities import modality_of_tensors, modality_of_work
from taskprune.errors import InputError


def modality_costs(groups: CouplingGroups, bounded: Iterable[str]) -> dict[str, CostModel]:
    """Return the costs of single modalities that a budget bounds, by name.

    The parameters of a modality are those of its modules: below its branch, or applied to its
    inputs and to those of no other. Its multiply-adds are those of the operators there. The weights
    with which the fusion reads a branch's features are the fusion's, so a bound on the fusion may
    be met by features of the branches. Modalities and fusion add up to the whole model.

    Args:
        groups: With labels, see :func:`taskprune.coupling.labelled`.
        bounded: Names of costs, such as ``"params of camera"``; those of the whole model are passed
            over.

    Raises:
        InputError: The groups have no such modality, or have no labels.
    """
    known = [modality.name for modality in groups.modalities]
    wanted = {name: of_modality(name) for name in bounded if of_modality(name)}
    costs: dict[str, CostModel] = {}
    for name, found in wanted.items():
        assert found is not None
        cost, modality = found
        if modality not in (*known, FUSION) or not known:
            raise InputError(
                f"The budget bounds the modality `{modality}`. Found "
                f"{', '.join((*known, FUSION)) if known else 'groups without modalities'}. Declare "
                "them: prune(..., modalities=[Modality(...), ...]), or `labelled(groups, [...])`."
            )
        if cost == "params":
            labels = modality_of_tensors(groups)
            own = [labels[tensor] == modality for tensor in sorted(groups.parameter_names)]
            terms = parameter_terms(groups)
        else:
            own = [label == modality for label in modality_of_work(groups)]
            terms = [(work.multiplier, work.factors) for work in groups.macs]
        costs[name] = CostModel(groups, (t for t, is_own in zip(terms, own, strict=True) if is_own))
    return costs
