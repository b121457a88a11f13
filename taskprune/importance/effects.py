r"""What the tasks say about each channel, summed over the calibration batches.

The *signed effect* of channel *c* on task *t* in batch *b* is the first-order change of the task's
loss when the channel's entries go to zero, up to its sign:

.. math:: s_{b,t,c} = \sum_{i \in c} w_i \, \partial L_{b,t} / \partial w_i

with the sum over all parameter entries of the channel, each once. Every criterion built on
gradients is a function of a few sums over batches of its products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.errors import LossError
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.distributed import several_processes, summed
from taskprune.importance.scores import Evidence
from taskprune.importance.stakes import Stakes


@dataclass(frozen=True, eq=False, slots=True)
class TaskStatistics:
    """Sums over calibration batches. T tasks, C channels of all groups together.

    Attributes:
        index: Running numbers of the channels.
        tasks: Names, in row order.
        n_batches: How many batches there were.
        n_labelled: In how many of them both tasks had labels. Shape ``[T, T]``, float64.
        mean_loss: Mean absolute loss of each task over its batches. Shape ``[T]``, float64.
        products: Sum over batches of ``s_t * s_u``. Shape ``[T, T, C]``, float64.
        opposition: Sum over batches of ``max(0, -s_t * s_u)``. Shape ``[T, T, C]``, float64.
        gramian: Inner products of the tasks' mean gradients on each channel's entries. Shape
            ``[T, T, C]``, float64; ``None`` unless asked for.
        stakes: What each task has to lose, see :mod:`taskprune.importance.stakes`. Shape ``[T]``,
            float64, NaN where it is not known; ``None`` unless asked for.
        probes: Mean squared effect on each probe of the evidence over its batches. Shape
            ``[P, C]``, float64.
    """

    index: ChannelIndex
    tasks: tuple[str, ...]
    n_batches: int
    n_labelled: Tensor
    mean_loss: Tensor
    products: Tensor
    opposition: Tensor
    probes: Tensor
    gramian: Tensor | None = None
    stakes: Tensor | None = None

    def in_rows(self, by_task: Mapping[str, float]) -> Tensor:
        """Return a number of each task in row order. Shape ``[T]``, float64."""
        return torch.tensor([by_task[t] for t in self.tasks], dtype=torch.float64, device="cpu")

    def mean_squares(self, scale: Tensor) -> Tensor:
        """Return each task's mean squared effect over the batches that have labels of it.

        Args:
            scale: Factor of each task's effects. Shape ``[T]``.

        Returns:
            Shape ``[T, C]``.
        """
        squares = self.products.diagonal(dim1=0, dim2=1).T  # [T, C]
        labelled = self.n_labelled.diagonal().clamp_min(1)
        return squares * (scale.square() / labelled)[:, None]


def device_for_sums(parameters: Mapping[str, Tensor]) -> torch.device:
    """Return where sums are kept: some accelerators have no float64, there on the host."""
    first = next(iter(parameters.values()), torch.zeros((), device="cpu"))
    return first.device if first.device.type in ("cpu", "cuda") else torch.device("cpu")


def signed_effects(
    found: TaskGradients, weights: Mapping[str, Tensor], index: ChannelIndex, device: torch.device
) -> Tensor:
    """Return the signed effect of every channel on one task in one batch. Shape ``[C]``, float64.

    Args:
        found: The task's gradients.
        weights: Factors of the gradients by parameter, in general the weights themselves.
        index: The channels.
        device: Where to add up.

    Raises:
        LossError: A gradient is not finite.
    """
    products = {
        name: _product(weights[name].detach(), gradient)
        for name, gradient in found.gradients.items()
        if gradient is not None
    }
    effects = index.sums(products, device)
    if not bool(torch.isfinite(effects).all()):
        raise LossError(
            f"The gradient of task `{found.name}` is not finite on calibration batch "
            f"{found.batch}, although its loss is {found.loss}. Check the loss for sqrt(0), 0/0 or "
            "values that overflow."
        )
    return effects


def loss_increase(squares: Tensor, losses: Tensor) -> Tensor | None:
    """Return the root mean square effect on each task's loss, as a fraction of that loss.

    Args:
        squares: Mean squared effects. Shape ``[T, C]``.
        losses: Mean losses. Shape ``[T]``.

    Returns:
        Shape ``[T, C]``; ``None`` where a loss is 0 and its effects are not.
    """
    loss = losses[:, None]
    if bool(((loss == 0) & (squares > 0)).any()):
        return None
    return squares.sqrt() / loss.where(loss > 0, 1.0)


def collect(
    model: nn.Module,
    index: ChannelIndex,
    evidence: Evidence,
    *,
    with_gramian: bool = False,
    with_stakes: bool = False,
    total: Callable[[TaskStatistics], Tensor] | None = None,
) -> TaskStatistics:
    """Run the calibration batches once and add up.

    Cost: a forward for each batch and a backward for each of its tasks and probes, and with
    ``with_stakes`` a few forwards in all; memory of one extra set of gradients, with
    ``with_gramian`` of T more. Under several processes the sums are those of all of them.

    Args:
        model: The model.
        index: The channels, and which entries of each count.
        evidence: Tasks and batches.
        with_gramian: Keep the tasks' mean gradients as well.
        with_stakes: Measure what each task has to lose.
        total: Total scores from the statistics so far, for ``evidence.settled``.

    Raises:
        InputError, TraceError, LossError: See
            :func:`~taskprune.importance.calibration.for_each_batch`.
    """
    parameters = index.find(dict(model.named_parameters()))
    stakes = Stakes(model, index, evidence, parameters) if with_stakes else None
    sums = _Sums(index, evidence, parameters, with_gramian=with_gramian, stakes=stakes)
    n_batches = for_each_batch(
        model,
        parameters,
        evidence,
        sums.add,
        interim=total and (lambda: total(sums.statistics(sums.batches))),
        afterwards=stakes.add if stakes else None,
    )
    sums.reduce()
    return sums.statistics(n_batches)


class _Sums:
    """The running sums behind :class:`TaskStatistics`."""

    def __init__(
        self,
        index: ChannelIndex,
        evidence: Evidence,
        parameters: dict[str, Tensor],
        *,
        with_gramian: bool,
        stakes: Stakes | None,
    ) -> None:
        self.stakes = stakes
        self.index, self.tasks, self.parameters = index, tuple(evidence.tasks), parameters
        self.device = device_for_sums(parameters)
        shape = (len(self.tasks), len(self.tasks))
        self.labelled = torch.zeros(shape, dtype=torch.float64, device="cpu")
        self.loss = torch.zeros(len(self.tasks), dtype=torch.float64, device="cpu")
        self.products = torch.zeros(
            (*shape, index.n_channels), dtype=torch.float64, device=self.device
        )
        self.opposition = torch.zeros_like(self.products)
        self.probes = torch.zeros(
            (len(evidence.probes), index.n_channels), dtype=torch.float64, device=self.device
        )
        self.probed = torch.zeros((len(evidence.probes), 1), dtype=torch.float64, device="cpu")
        self.gradients: list[dict[str, Tensor]] | None = (
            [{} for _ in self.tasks] if with_gramian else None
        )
        self.batches = 0

    def add(self, batch: Iterator[TaskGradients]) -> None:
        """Take in one batch."""
        self.batches += 1
        effects = torch.zeros(
            (len(self.tasks), self.index.n_channels), dtype=torch.float64, device=self.device
        )
        present = torch.zeros(len(self.tasks), dtype=torch.float64, device="cpu")
        for found in batch:
            own = signed_effects(found, self.parameters, self.index, self.device)
            if found.task >= len(self.tasks):
                self.probes[found.task - len(self.tasks)] += own.square_()
                self.probed[found.task - len(self.tasks)] += 1
                continue
            present[found.task] = 1
            self.loss[found.task] += abs(found.loss)
            effects[found.task] = own
            if self.gradients is not None:
                _add_gradients(self.gradients[found.task], found)
        products = effects[:, None] * effects[None]
        self.labelled += present[:, None] * present[None]
        self.products += products
        self.opposition += products.neg_().clamp_min_(0)

    def reduce(self) -> None:
        """Add up over processes; all of them go on with the same sums."""
        self.labelled, self.loss = summed(self.labelled), summed(self.loss)
        self.products, self.opposition = summed(self.products), summed(self.opposition)
        self.probes, self.probed = summed(self.probes), summed(self.probed)
        if self.stakes is not None:
            self.stakes.reduce()
        if self.gradients is not None:
            # A task may be unlabelled in one process: all take part with the same tensors.
            self.gradients = (
                [
                    {
                        name: summed(own[name] if name in own else torch.zeros_like(parameter))
                        for name, parameter in self.parameters.items()
                    }
                    for own in self.gradients
                ]
                if several_processes()
                else self.gradients
            )

    def statistics(self, n_batches: int) -> TaskStatistics:
        """Return what the sums say so far."""
        return TaskStatistics(
            index=self.index,
            tasks=self.tasks,
            n_batches=n_batches,
            n_labelled=self.labelled,
            mean_loss=self.loss / self.labelled.diagonal().clamp_min(1),
            products=self.products.cpu(),
            opposition=self.opposition.cpu(),
            probes=self.probes.cpu() / self.probed.clamp_min(1),
            gramian=None if self.gradients is None else self._gramian(self.gradients).cpu(),
            stakes=None if self.stakes is None else self.stakes.values(),
        )

    def _gramian(self, gradients: list[dict[str, Tensor]]) -> Tensor:
        gramian = torch.zeros_like(self.products)
        for t, row in enumerate(gradients):
            for u, column in enumerate(gradients[: t + 1]):
                shared = {name: row[name] * column[name] for name in row if name in column}
                gramian[t, u] = gramian[u, t] = self.index.sums(shared, self.device) / (
                    self.labelled[t, t] * self.labelled[u, u]
                ).clamp_min(1).to(self.device)
        return gramian


def _product(weight: Tensor, gradient: Tensor) -> Tensor:
    # Half-precision products would lose small terms before they are summed.
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide) * gradient.to(wide)


def _add_gradients(total: dict[str, Tensor], found: TaskGradients) -> None:
    for name, gradient in found.gradients.items():
        if gradient is None:
            continue
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        total[name] = total[name] + wide if name in total else wide
