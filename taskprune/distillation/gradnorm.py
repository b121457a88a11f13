"""GradNorm: tasks and teacher pull on the shared layers equally, the slower learners harder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from taskprune.errors import InputError

_LOG_WEIGHT, _FIRST_LOSS = "log_weight/", "first_loss/"


@dataclass(frozen=True)
class GradNorm:
    r"""Learn weights :math:`w_i` that bring gradient norms to :math:`\bar G \, r_i^\alpha`.

    .. math::
        \min_w \sum_i \left| G_i - \bar G \, r_i^\alpha \right|, \qquad
        G_i = w_i \lVert \nabla_W L_i \rVert_2, \qquad
        r_i = \frac{L_i / L_i(0)}{\mathrm{mean}_j \, L_j / L_j(0)}

    with :math:`\bar G` the mean of the :math:`G_i`, the target held constant and the weights scaled
    to a mean of 1 after each step. The terms are the tasks and, as one more, all losses that follow
    the teacher, so this balances distillation against the tasks too. A task's ``weight`` and
    ``feature_weight`` multiply what is learnt. A term that is missing in a step keeps its weight.

    Ours: the targets are scaled to a mean of :math:`\bar G`, because otherwise no weights reach all
    of them and the descent settles beyond; and it is in :math:`\log w_i`, relative to
    :math:`\bar G`, so that weights stay positive and ``learning_rate`` means the same whatever the
    size of the losses.

    Each term costs one more backward pass down to the shared module.

    Example:
        >>> DistillSettings(steps=1000, weighting=GradNorm("backbone.stages.3"))

    Attributes:
        shared: Path of the student's module whose parameters are :math:`W`: the last one that all
            terms share.
        alpha: How strongly terms that learn slowly are preferred; 0 makes all norms equal.
        learning_rate: Of the :math:`\log w_i`.
        largest_move: Of a :math:`\log w_i` in one step.

    References:
        Chen et al., *GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
        Networks*, ICML 2018, arXiv:1711.02257, equations 1 and 2.
    """

    shared: str
    alpha: float = 1.5
    learning_rate: float = 0.025
    largest_move: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.shared, str) or not self.shared:
            raise InputError(f"`GradNorm.shared` must be a module's path. Found {self.shared!r}.")
        for name in ("learning_rate", "largest_move"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"`GradNorm.{name}` must be a positive number. Found {value!r}.")
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise InputError(f"`GradNorm.alpha` must be at least 0. Found {self.alpha!r}.")

    def weight(self, learnt: Mapping[str, float], term: str) -> float:
        """Return the factor of a term; 1 at the start."""
        return math.exp(learnt.get(_LOG_WEIGHT + term, 0.0))

    def updated(
        self,
        learnt: Mapping[str, float],
        losses: Mapping[str, float],
        norms: Mapping[str, float],
    ) -> dict[str, float]:
        """Return what is learnt after one step of descent."""
        new = dict(learnt)
        for term, loss in losses.items():
            new.setdefault(_LOG_WEIGHT + term, 0.0)
            # A loss that starts at 0 (a sliced teacher's features) has no relative progress yet.
            if loss > 0:
                new.setdefault(_FIRST_LOSS + term, loss)
        ratios = {
            term: loss / new[_FIRST_LOSS + term]
            for term, loss in losses.items()
            if _FIRST_LOSS + term in new and norms.get(term, 0.0) > 0
        }
        if len(ratios) > 1 and any(ratios.values()):
            self._descend(new, ratios, norms)
        return new

    def _descend(
        self, learnt: dict[str, float], ratios: Mapping[str, float], norms: Mapping[str, float]
    ) -> None:
        pulls = {term: self.weight(learnt, term) * norms[term] for term in ratios}
        mean_pull = sum(pulls.values()) / len(pulls)
        rates = {term: ratio**self.alpha for term, ratio in ratios.items()}
        mean_rate = sum(rates.values()) / len(rates)
        for term, pull in pulls.items():
            target = mean_pull * rates[term] / mean_rate
            sign = (pull > target) - (pull < target)
            move = self.learning_rate * sign * pull / mean_pull
            learnt[_LOG_WEIGHT + term] -= max(-self.largest_move, min(self.largest_move, move))
        known = [name for name in learnt if name.startswith(_LOG_WEIGHT)]
        shift = math.log(sum(math.exp(learnt[name]) for name in known) / len(known))
        for name in known:
            learnt[name] -= shift
