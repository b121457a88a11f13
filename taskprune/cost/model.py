r"""Costs as exact functions of how many channels each group keeps.

Every cost here is a sum of products of sizes,

.. math:: V(k) = \sum_t m_t \prod_f s_{t,f}(k), \qquad s(k) = c + \sum_g a_g k_g,

where :math:`k_g` channels of group *g* stay. A parameter of shape ``[out, in, 3, 3]`` is one term
with two sizes that can shrink and the multiplier 9. Dropping channels of one group changes the
terms that group occurs in and no others, so a solver that drops a few channels at a time pays for
those alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from taskprune.coupling.groups import CouplingGroups, IntArray, LinearForm
from taskprune.errors import InputError

Term: TypeAlias = tuple[int, tuple[LinearForm, ...]]
"""Multiplier and sizes of one product."""


def count_params(groups: CouplingGroups, kept: Mapping[str, int] | None = None) -> int:
    """Return how many parameters the model has when it keeps ``kept`` channels per group."""
    return CostModel.of_params(groups).value(kept)


def count_macs(groups: CouplingGroups, kept: Mapping[str, int] | None = None) -> int:
    """Return the multiply-adds of one forward pass on the traced inputs, whole batch.

    Exact, but for functions that order matrix products by their sizes, such as
    ``torch.linalg.multi_dot``: they are counted in the recorded order, which bounds them.
    """
    return CostModel.of_macs(groups).value(kept)


def parameter_terms(groups: CouplingGroups) -> list[Term]:
    """Return one product of sizes for each parameter."""
    coefficients: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups:
        for member in group.members:
            along = coefficients.setdefault((member.name, member.dim), {})
            along[group.name] = along.get(group.name, 0) + member.index.shape[1]
    full = groups.full_counts()
    terms: list[Term] = []
    for name in sorted(groups.parameter_names):
        multiplier, sizes = 1, []
        for dim, size in enumerate(groups.shapes[name]):
            along = coefficients.get((name, dim), {})
            if along:
                fixed = size - sum(c * full[g] for g, c in along.items())
                sizes.append(LinearForm(fixed, along))
            else:
                multiplier *= size
        terms.append((multiplier, tuple(sizes)))
    return terms


class CostModel:
    """One cost of one model, for any number of kept channels.

    Arrays that it takes and returns hold one entry per group, in the order of ``names``.

    Args:
        groups: The model's coupling groups.
        terms: The products that add up to the cost.

    Attributes:
        names: The groups' names.
        full: How many channels each group has. Shape ``[n_groups]``, int64.
    """

    def __init__(self, groups: CouplingGroups, terms: Iterable[Term]) -> None:
        self.names = tuple(group.name for group in groups)
        self.full: IntArray = np.array([g.n_channels for g in groups], dtype=np.int64)
        self._position = {name: i for i, name in enumerate(self.names)}
        self._terms = _merged(terms)
        self._build()

    @classmethod
    def of_params(cls, groups: CouplingGroups) -> CostModel:
        """The number of parameters, tied ones once."""
        return cls(groups, parameter_terms(groups))

    @classmethod
    def of_macs(cls, groups: CouplingGroups) -> CostModel:
        """Multiply-adds of one forward pass on the traced inputs, whole batch."""
        return cls(groups, ((term.multiplier, term.factors) for term in groups.macs))

    def _build(self) -> None:
        """Lay the terms out as arrays."""
        n_factors = max((len(factors) for _, factors in self._terms), default=0)
        forms: dict[tuple[int, tuple[tuple[str, int], ...]], int] = {(1, ()): 0}
        multipliers, factor_ids = [], []
        for multiplier, factors in self._terms:
            ids = [forms.setdefault(_key(factor), len(forms)) for factor in factors]
            factor_ids.append(ids + [0] * (n_factors - len(ids)))
            multipliers.append(multiplier)
        self.multipliers: IntArray = np.array(multipliers, dtype=np.int64)
        self.factors: IntArray = np.array(factor_ids, dtype=np.int64).reshape(
            len(factor_ids), n_factors
        )
        self.constants: IntArray = np.array([constant for constant, _ in forms], dtype=np.int64)
        entries = [
            (form, self._position[name], coefficient)
            for form, (_, coefficients) in enumerate(forms)
            for name, coefficient in coefficients
        ]
        # One row per (form, group) with a coefficient.
        self.form_of, self.group_of, self.coefficient = (
            np.array(column, dtype=np.int64)
            for column in (zip(*entries, strict=True) if entries else ((), (), ()))
        )
        self._build_pairs(len(forms))

    def _build_pairs(self, n_forms: int) -> None:
        """List all (term, group) pairs where the term depends on the group."""
        by_form: list[list[tuple[int, int]]] = [[] for _ in range(n_forms)]
        for form, group, coefficient in zip(
            self.form_of.tolist(), self.group_of.tolist(), self.coefficient.tolist(), strict=True
        ):
            by_form[form].append((group, coefficient))
        pairs: dict[tuple[int, int], list[int]] = {}
        width = self.factors.shape[1]
        for term, ids in enumerate(self.factors.tolist()):
            for column, form in enumerate(ids):
                for group, coefficient in by_form[form]:
                    slopes = pairs.setdefault((term, group), [0] * width)
                    slopes[column] += coefficient
        self.pair_term: IntArray = np.array([t for t, _ in pairs], dtype=np.int64)
        self.pair_group: IntArray = np.array([g for _, g in pairs], dtype=np.int64)
        self.pair_slopes: IntArray = np.array(list(pairs.values()), dtype=np.int64).reshape(
            len(pairs), width
        )

    def counts(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return kept counts as an array; ``None`` stands for all channels.

        Raises:
            InputError: A group is missing or unknown.
        """
        if kept is None:
            kept = self.full
        if isinstance(kept, np.ndarray):
            given: IntArray = kept.astype(np.int64)
            return given
        if set(kept) != set(self.names):
            odd = sorted(set(kept) ^ set(self.names))[0]
            raise InputError(
                f"Expected a kept count for each of the {len(self.names)} groups and no others. "
                f"`{odd}` is {'missing' if odd in self._position else 'no group of this model'}."
            )
        counts: IntArray = np.array([kept[name] for name in self.names], dtype=np.int64)
        return counts

    def sizes(self, counts: IntArray) -> IntArray:
        """Return the value of every distinct size. Shape ``[n_sizes]``."""
        values: IntArray = self.constants.copy()
        np.add.at(values, self.form_of, self.coefficient * counts[self.group_of])
        return values

    def value(self, kept: Mapping[str, int] | IntArray | None = None) -> int:
        """Return the cost, exactly."""
        sizes = self.sizes(self.counts(kept))
        return int((self.multipliers * sizes[self.factors].prod(axis=1)).sum())

    def marginals(self, kept: Mapping[str, int] | IntArray | None = None) -> IntArray:
        """Return what dropping one more channel of each group would save. Shape ``[n_groups]``."""
        sizes = self.sizes(self.counts(kept))[self.factors[self.pair_term]]
        less = sizes - self.pair_slopes
        saved = self.multipliers[self.pair_term] * (sizes.prod(axis=1) - less.prod(axis=1))
        marginals: IntArray = np.zeros(len(self.names), dtype=np.int64)
        np.add.at(marginals, self.pair_group, saved)
        return marginals


def _merged(terms: Iterable[Term]) -> list[Term]:
    """Add up terms with the same sizes; fold constant sizes into the multipliers."""
    merged: dict[tuple[Any, ...], int] = {}
    forms: dict[tuple[Any, ...], tuple[LinearForm, ...]] = {}
    for multiplier, factors in terms:
        live = []
        for factor in factors:
            if any(factor.coefficients.values()):
                live.append(factor)
            else:
                multiplier *= factor.constant
        key = tuple(sorted(_key(factor) for factor in live))
        merged[key] = merged.get(key, 0) + multiplier
        forms.setdefault(key, tuple(live))
    return [(multiplier, forms[key]) for key, multiplier in merged.items()]


def _key(form: LinearForm) -> tuple[int, tuple[tuple[str, int], ...]]:
    return form.constant, tuple(sorted((g, c) for g, c in form.coefficients.items() if c))
