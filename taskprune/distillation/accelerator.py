"""Hugging Face Accelerate, imported only when training begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from taskprune.distillation.settings import DistillSettings
from taskprune.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from accelerate import Accelerator


@contextmanager
def accelerated(settings: DistillSettings) -> Iterator[Accelerator]:
    """Provide an ``Accelerator`` for the settings and clear Accelerate's shared state after it.

    Accelerate keeps precision and device in module-wide state. A state that was there before (the
    user's own) is used and left alone.

    Raises:
        MissingDependencyError: Accelerate is not installed.
        InputError: The state that is there contradicts the settings, or Accelerate was started
            with a way of distributing that the trainer does not know.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState, PartialState
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise MissingDependencyError(
            "Distillation trains with Hugging Face Accelerate, which is not installed. Install "
            'it with `pip install "taskprune[distill]"`.'
        ) from error
    states = (AcceleratorState, GradientState, PartialState)
    before = [dict(state._shared_state) for state in states]
    try:
        try:
            accelerator = Accelerator(
                mixed_precision=settings.mixed_precision,
                cpu=settings.cpu,
                gradient_accumulation_plugin=GradientAccumulationPlugin(
                    num_steps=settings.accumulation,
                    adjust_scheduler=False,
                    # Steps count batches across the end of an epoch: none is left half used.
                    sync_with_dataloader=False,
                ),
                # A batch without labels of a task leaves that task's head without gradients.
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        except ValueError as error:
            raise InputError(
                f"Accelerate refuses mixed_precision={settings.mixed_precision!r}, "
                f"cpu={settings.cpu}: {error}"
            ) from error
        _check_distribution(accelerator)
        yield accelerator
    finally:
        if not PartialState().use_distributed:  # else the process group belongs to the launcher
            for state, attributes in zip(states, before, strict=True):
                state._shared_state.clear()
                state._shared_state.update(attributes)


def _check_distribution(accelerator: Accelerator) -> None:
    """Refuse what splits the student between processes in a way that the trainer does not know."""
    found = accelerator.distributed_type.value
    if found not in ("NO", "FSDP") and not found.startswith("MULTI_"):
        raise InputError(
            "Distillation runs on one process, data-parallel or with FSDP 2. Found Accelerate "
            f"started with {found}. Run `accelerate config` and choose multi-GPU or multi-CPU "
            "without DeepSpeed or Megatron-LM, or start with `torchrun`."
        )
