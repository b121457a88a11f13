"""Pruning in the middle of a training by Lightning, and checkpoints that load afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from taskprune.errors import CheckpointError, InputError, MissingDependencyError
from taskprune.front.result import PruneResult
from taskprune.integrations.schedule import check_when
from taskprune.plan.plan import PruningPlan
from taskprune.rewrite import apply_plan, carry_over

try:
    try:
        pl: Any = import_module("lightning.pytorch")
    except ImportError:
        pl = import_module("pytorch_lightning")
except ImportError as error:
    raise MissingDependencyError(
        '`taskprune.integrations.lightning` needs Lightning. Run `pip install "taskprune[lightning]'
        f'"` ({error}).'
    ) from error

__all__ = ["Prunable", "PruneCallback"]

_PLAN = "taskprune_plan"
"""Entry of a checkpoint that holds the plan as JSON text."""


class Prunable:
    """Mixin of a ``LightningModule``: its checkpoints hold the plan that it was pruned by.

    ``class Net(Prunable, LightningModule)`` makes ``Net.load_from_checkpoint(path)`` and
    ``trainer.fit(net, ckpt_path=path)`` work, also for checkpoints from before it was pruned.

    Attributes:
        pruning_plan: The plan; ``None`` while the module is whole.
    """

    pruning_plan: PruningPlan | None = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the plan."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self.pruning_plan is not None:
            checkpoint[_PLAN] = self.pruning_plan.to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Prune the module as the one that was saved, before its weights come.

        Raises:
            CheckpointError: The module is pruned already, in another way.
            PlanMismatchError: The checkpoint is of another module.
        """
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        text = checkpoint.get(_PLAN)
        plan = None if text is None else PruningPlan.from_json(text)
        if plan == self.pruning_plan:
            return
        if plan is None or self.pruning_plan is not None:
            raise CheckpointError(
                f"Expected a checkpoint of {type(self).__name__} as it is, pruned. Found one of it "
                f"{'whole' if plan is None else 'pruned in another way'}. Load it into a new one."
            )
        assert isinstance(self, nn.Module)
        apply_plan(self, plan, verify=False, inplace=True)
        self.pruning_plan = plan


class PruneCallback(pl.Callback):  # type: ignore[misc]
    """Prunes the module in the middle of a training by ``lightning.Trainer``.

    The module, its optimizers and their schedulers stay the objects that the trainer holds; moments
    are cut like their parameters, and so are averages that Lightning's ``WeightAveraging`` and
    ``StochasticWeightAveraging`` keep (:func:`taskprune.rewrite.carry_over`).

    Args:
        how: ``module -> result``, for example
            ``lambda module: taskprune.prune(module, tasks, 0.3, data=batches)``.
        epoch: Prune after this many epochs, before the next one starts.

    Attributes:
        result: What `how` has returned; ``None`` before, and in a run that was resumed.

    Raises:
        InputError: `epoch` is no whole number from 1 on; when training begins: the module is not
            :class:`Prunable`, the training ends before, or is spread over processes.
    """

    def __init__(self, how: Callable[[nn.Module], PruneResult], *, epoch: int) -> None:
        super().__init__()
        check_when(None, epoch)
        self.how = how
        self.epoch = epoch
        self.result: PruneResult | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse trainings in which this cannot work."""
        if not isinstance(pl_module, Prunable):
            raise InputError(
                f"Expected a module whose checkpoints can hold its plan: `class "
                f"{type(pl_module).__name__}(taskprune.integrations.lightning.Prunable, "
                "LightningModule)`. Found one without `Prunable`, whose checkpoints nothing could "
                "load."
            )
        if trainer.world_size > 1:
            raise InputError(
                f"Expected a training in one process. Found {trainer.world_size}, whose models "
                "would have to change at once. Prune before the training starts."
            )
        last = trainer.max_epochs
        if last is not None and 0 <= last <= self.epoch:
            raise InputError(
                f"Expected a training that goes on after epoch {self.epoch}, when the module is to "
                f"be pruned. Found `max_epochs={last}`."
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Prune once that many epochs are through."""
        if trainer.current_epoch != self.epoch or pl_module.pruning_plan is not None:
            return
        result = self.how(pl_module)
        carry_over(
            pl_module,
            result.model,
            result.plan,
            optimizers=trainer.optimizers,
            averages=_averages(trainer),
        )
        self.result, pl_module.pruning_plan = result, result.plan


def _averages(trainer: Any) -> Iterator[nn.Module]:
    """Yield the averaged modules that Lightning's own callbacks keep."""
    for callback in trainer.callbacks:
        average = getattr(callback, "_average_model", None)
        if isinstance(average, AveragedModel):
            yield average.module
        elif isinstance(average, nn.Module):
            yield average
