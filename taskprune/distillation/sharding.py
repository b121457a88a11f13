"""Shard the student over processes by FSDP 2 (``torch.distributed.fsdp.fully_shard``).

A copy of the student is sharded and trained; its whole weights are copied into the user's student
at the end. That one stays where and what it is, so there is nothing to take off again.

How to shard is Accelerate's configuration (``accelerate config``, ``FSDP_...`` variables): the
policy that says which modules are units of their own, and whether to reshard after the forward
pass. The sharding itself is torch's: Accelerate has none on CPUs, where it falls back to
data-parallel without a word, and so nothing of it could be tested.

References:
    Zhao et al., *PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel*,
    arXiv:2304.11277.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from taskprune.calling.forward import Forward
from taskprune.distillation.buffers import take_from_main
from taskprune.distillation.settings import DistillSettings
from taskprune.distillation.shards import is_sharded
from taskprune.errors import InputError
from taskprune.restore import evaluating
from taskprune.restore.lending import lent

if TYPE_CHECKING:
    from accelerate import Accelerator

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def requested_sharding(accelerator: Accelerator) -> Any:
    """Return Accelerate's FSDP plugin if the processes were started to shard, else ``None``."""
    kind = accelerator.distributed_type.value
    if kind == "FSDP":
        return accelerator.state.fsdp_plugin
    if kind == "MULTI_CPU" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        from accelerate import FullyShardedDataParallelPlugin

        return FullyShardedDataParallelPlugin()
    return None


def check_shardable(
    student: nn.Module, plugin: Any, settings: DistillSettings, forward: Forward, example: Any
) -> None:
    """Refuse by name what would not train as on one process.

    Runs the student once, in eval mode.

    Raises:
        InputError: See the message.
    """
    for found, way_out in _obstacles(student, plugin, settings):
        raise InputError(
            f"A student that is sharded over processes (FSDP) is trained without {found}. "
            f"{way_out} Or start without FSDP: `torchrun` trains data-parallel."
        )
    called = []
    handle = student.register_forward_pre_hook(lambda *_: called.append(True))
    try:
        student.eval()
        with torch.no_grad():
            forward(student, example)
    finally:
        handle.remove()
    if not called:
        raise InputError(
            "FSDP gathers a student's parameters when the student itself is called. Found that "
            "`forward` calls a method or a part of it. Call `model(...)` in `forward`, or start "
            "without FSDP: `torchrun` trains data-parallel."
        )


def _obstacles(
    student: nn.Module, plugin: Any, settings: DistillSettings
) -> Iterator[tuple[str, str]]:
    version = getattr(plugin, "fsdp_version", 1)
    if version != 2:
        yield (
            f"FSDP {version}, whose flat parameters hide the tensors' shapes",
            "Set `fsdp_version: 2` in `accelerate config`, or `FSDP_VERSION=2`.",
        )
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        yield (
            f"parameters that are unused in some process, which torch {torch.__version__} cannot "
            "average",
            "Install torch 2.13 or newer.",
        )
    if plugin.activation_checkpointing:
        yield (
            "activation checkpointing, which runs tapped modules twice",
            "Set `fsdp_activation_checkpointing: false`.",
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        yield "parameters offloaded to the CPU", "Set `fsdp_offload_params: false`."
    if plugin.ignored_modules:
        yield "ignored modules", "Set `fsdp_ignored_modules` to none."
    if settings.mixed_precision == "fp16":
        yield "float16's loss scaling", "Choose `mixed_precision='bf16'`."
    scalars = [name for name, p in student.named_parameters() if p.dim() == 0]
    if scalars:
        yield f"scalar parameters, and has `{scalars[0]}`", "Give it the shape [1]."
    types = sorted({str(p.dtype) for p in student.parameters()})
    if len(types) > 1:
        yield f"parameters of several types, and has {', '.join(types)}", "Convert the student."


def shard(
    objective: nn.Module, student: nn.Module, plugin: Any, accelerator: Accelerator, example: Any
) -> None:
    """Shard the objective and its student, in place, from the main process's values.

    The student is a unit of its own, so that callbacks can call it. FSDP takes the first module
    that runs for the root, so the objective runs once, on the example.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    take_from_main([*objective.parameters(), *objective.buffers()])
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    reshard = plugin.reshard_after_forward
    is_unit = _unit_policy(plugin, student)
    for module in reversed(list(student.modules())[1:]):  # parts before what they are part of
        if is_unit(module) and not isinstance(module, _CONTAINERS):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(student, mesh=mesh, reshard_after_forward=reshard)
    sharded: Any = fully_shard(objective, mesh=mesh, reshard_after_forward=reshard)
    # A batch without labels of a task leaves that task's head without gradients.
    sharded.set_reduce_scatter_unused_params(True)
    with evaluating(objective), torch.no_grad(), lent(example):
        objective(example, {})
    reshard_all(objective)


def reshard_all(model: nn.Module) -> None:
    """Drop gathered parameters; FSDP may keep them after a forward pass without a backward one.

    They would outlive a change of the shards, and a checkpoint would take them for the shards.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            unit: Any = module
            unit.reshard()


def _unit_policy(plugin: Any, student: nn.Module) -> Callable[[nn.Module], bool]:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    plugin.set_auto_wrap_policy(student)
    policy: Callable[[nn.Module], bool] | None = fsdp2_prepare_auto_wrap_policy(plugin, student)
    return policy or (lambda _: False)


class UnusedParameters:
    """Takes the gradient from parameters that no process used in a step.

    FSDP averages zeros where there is no gradient, and AdamW then moves and decays the parameter.
    On one process, and data-parallel, it is left alone.
    """

    def __init__(self, objective: nn.Module, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        numbers = {name: number for number, name in enumerate(trained)}
        self._used = torch.zeros(len(trained), device=accelerator.device)
        from torch.distributed.fsdp import FSDPModule

        for path, module in objective.named_modules():
            if not isinstance(module, FSDPModule):
                continue
            unit: Any = module
            unit.unshard()
            for name, parameter in unit.named_parameters(prefix=path):
                if name in numbers and not is_sharded(parameter):
                    parameter.register_post_accumulate_grad_hook(self._mark(numbers[name]))
            unit.reshard()

    def _mark(self, number: int) -> Callable[[Tensor], None]:
        def mark(_parameter: Tensor) -> None:
            self._used[number] = 1.0

        return mark

    def drop(self) -> None:
        """Set their gradients to ``None``, and begin anew."""
        used: Any = self._accelerator.reduce(self._used, "sum")
        for parameter, count in zip(self._parameters, used.tolist(), strict=True):
            if not count:
                parameter.grad = None
        self._used = torch.zeros_like(self._used)
