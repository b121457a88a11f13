r"""Gates: factors of 1 by which a channel is multiplied wherever a layer reads it.

Closing the gate is removing the channel. Its slope is :math:`\sum a \, \partial L / \partial a`
over the values :math:`a` of the channel that the reading layers receive (as in Group Fisher, whose
masks stand at the layers' inputs). For a layer that is linear in its input the same number is
:math:`\sum w \, \partial L / \partial w` over the weights that read it, because both sum
:math:`w \, a \, \partial L / \partial y`. So over a whole batch gates need no activations; sample
by sample they do. Channels that no weight reads (queries and keys, which read each other) have
their gates where they are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from taskprune.coupling.groups import CouplingGroup, CouplingGroups, TensorSlice
from taskprune.errors import InputError
from taskprune.importance.channel_index import ChannelIndex

Conv = nn.modules.conv._ConvNd


def gate_members(group: CouplingGroup) -> list[TensorSlice]:
    """Return the members whose weights meet the gates: those that read, or else those that make."""
    return [member for member in group.members if not member.produces] or list(group.members)


@dataclass(frozen=True, eq=False, slots=True)
class Gate:
    """Where one layer reads channels.

    Attributes:
        module: Its path.
        dim: Channel dim of the layer's input, or output.
        at_input: Whether it is the input.
        channel: Running number of each position along ``dim``, ``C`` where there is none. Shape
            ``[size of the dim]``.
    """

    module: str
    dim: int
    at_input: bool
    channel: Tensor


def find_gates(model: nn.Module, groups: CouplingGroups, index: ChannelIndex) -> tuple[Gate, ...]:
    """Find the convolutions and linear layers that read, or else make, each group's channels."""
    found: dict[tuple[str, bool], Gate] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for group in groups:
        numbers = torch.arange(index.slices[group.name].start, index.slices[group.name].stop)
        for member in gate_members(group):
            path, _, leaf = member.name.rpartition(".")
            module = modules.get(path)
            if leaf != "weight" or not isinstance(module, Conv | nn.Linear):
                continue
            at_input = not member.produces
            positions, size, dim = _positions(module, member)
            gate = found.setdefault(
                (path, at_input),
                Gate(path, dim, at_input, torch.full((size,), index.n_channels)),
            )
            repeated = numbers[:, None].expand(-1, positions.shape[1]).reshape(-1)
            gate.channel[positions.reshape(-1)] = repeated
    return tuple(found.values())


def _positions(module: Conv | nn.Linear, member: TensorSlice) -> tuple[Tensor, int, int]:
    """Return a member's positions in the layer's input or output, its size and its dim."""
    positions = torch.from_numpy(member.index)
    if isinstance(module, nn.Linear):
        return positions, module.out_features if member.produces else module.in_features, -1
    size = module.out_channels if member.produces else module.in_channels
    # The weight's second dim holds the channels of one convolution group.
    if member.dim == 1 and module.groups > 1:
        step = size // module.groups
        positions = torch.cat([positions + k * step for k in range(module.groups)], dim=1)
    return positions, size, 1


@dataclass(eq=False)
class GateWatch:
    """Keeps what passes the gates in one forward; see :class:`.calibration.Watch`.

    Attributes:
        gates: Where to watch.
        tensors: What passed, in the order of the calls.
        passed: The gate of each of them.
        first: Whether it is the first time that its tensor is met.
        n_samples: Samples in the batch.
    """

    gates: tuple[Gate, ...]
    tensors: list[Tensor] = field(default_factory=list)
    passed: list[Gate] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)
    n_samples: int = 0

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Watch one forward."""
        self.tensors, self.passed, self.first, self.n_samples = [], [], [], 0
        seen: dict[int, Tensor] = {}  # holds the tensors, so that no id is used twice
        open_ = True

        def keep(gate: Gate, tensor: Any) -> Any:
            if not isinstance(tensor, Tensor) or not tensor.requires_grad:
                return tensor
            # A node of its own: its gradient is what comes back through this layer alone.
            own = tensor.view_as(tensor)
            if open_:
                self.tensors.append(own)
                self.passed.append(gate)
                self.first.append(id(tensor) not in seen)
                seen[id(tensor)] = tensor
            return own

        def count(_module: nn.Module, args: Any, kwargs: Any) -> None:
            sizes = [
                leaf.shape[0]
                for leaf in tree_leaves((args, kwargs))
                if isinstance(leaf, Tensor) and leaf.ndim
            ]
            self.n_samples = self.n_samples or (sizes[0] if sizes else 0)

        modules = dict(model.named_modules(remove_duplicate=False))
        with ExitStack() as hooks:
            handles = [model.register_forward_pre_hook(count, with_kwargs=True)]
            handles += [_watch(modules[gate.module], gate, keep) for gate in self.gates]
            for handle in handles:
                hooks.callback(handle.remove)
            # Gradient checkpointing runs layers again in the backward, when the hooks are gone.
            yield
            open_ = False
        if not self.n_samples and self.tensors:
            self.n_samples = len(self.tensors[0])  # the model was not called as a whole

    def effects(self, gradients: tuple[Tensor | None, ...], n_channels: int) -> Iterator[Tensor]:
        """Yield zeros, then each layer's part in the slope of each sample's gates.

        Args:
            gradients: Of one loss by ``tensors``.
            n_channels: All channels together.

        Yields:
            Shape ``[n_samples, n_channels]``, float64.

        Raises:
            InputError: A layer's first dim is not made of samples.
        """
        yield torch.zeros(self.n_samples, n_channels, dtype=torch.float64)
        for tensor, gate, gradient in zip(self.tensors, self.passed, gradients, strict=True):
            if gradient is not None:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                product = tensor.detach().to(wide) * gradient.to(wide)
                per_sample = self._by_sample(product, gate).sum(1).cpu().double()
                slopes = per_sample.new_zeros(len(per_sample), n_channels + 1)
                yield slopes.index_add_(1, gate.channel, per_sample)[:, :-1]

    def sizes(self, n_channels: int) -> Tensor:
        """Return how many values of each channel a sample holds in memory. Shape ``[C]``."""
        sizes = torch.zeros(n_channels + 1, dtype=torch.float64)
        for tensor, gate, first in zip(self.tensors, self.passed, self.first, strict=True):
            if first:
                n_values = tensor.numel() / (tensor.shape[gate.dim] * self.n_samples)
                sizes.index_add_(
                    0, gate.channel, torch.full((len(gate.channel),), n_values).double()
                )
        return sizes[:-1]

    def _by_sample(self, values: Tensor, gate: Gate) -> Tensor:
        """Return ``[n_samples, values of a channel, channels]``."""
        rows = values.shape[0]
        if values.ndim < 2 or rows % max(1, self.n_samples):
            raise InputError(
                f"Criteria that look at single samples need them in the first dim. Layer "
                f"`{gate.module}` works on shape {tuple(values.shape)}, and the batch has "
                f"{self.n_samples} samples. Choose one that looks at batches, such as "
                "importance='taylor_gate'."
            )
        moved = values.movedim(gate.dim, -1)
        return moved.reshape(self.n_samples, -1, moved.shape[-1])


def _watch(module: nn.Module, gate: Gate, keep: Any) -> Any:
    if gate.at_input:
        return module.register_forward_pre_hook(
            lambda _module, args: (keep(gate, args[0]), *args[1:]) if args else None
        )
    return module.register_forward_hook(lambda _module, _args, output: keep(gate, output))
