"""Limits that hold whatever the scores say.

A ranking over the whole model can empty a layer, or the private head of a task, and no training
brings it back. The limits bind the solver; where they make a budget unreachable, it says so and
gives way in nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from taskprune.coupling.groups import CouplingGroup
from taskprune.errors import InputError, short

DEVICE_MULTIPLES = {
    # NVIDIA, "Matrix Multiplication Background User's Guide", section on tensor core requirements:
    # dimensions that are multiples of 16 bytes, which are 8 elements of fp16 or bf16, ...
    "tensor-core-fp16": 8,
    "tensor-core-bf16": 8,
    # ... 16 of int8 ...
    "tensor-core-int8": 16,
    # ... and 4 of TF32.
    "tensor-core-tf32": 4,
    # The same section: on A100 multiples of 128 bytes are the most efficient, 64 of fp16.
    "a100-fp16": 64,
    # A 512-bit register holds 16 float32 (Intel, "Intrinsics Guide", AVX-512F `__m512`); oneDNN
    # stores activations in blocks of as many channels (its layout `nChw16c`).
    "cpu-avx512": 16,
    # A 256-bit register holds 8 (the same guide, AVX `__m256`; oneDNN's `nChw8c`).
    "cpu-avx2": 8,
    # A 128-bit register holds 4 float32 (Arm, "Neon Intrinsics Reference", `float32x4_t`).
    "cpu-neon": 4,
}
"""``{device: channels}`` for ``Safety(round_to=...)``.

Where a layer's channels fill whole registers or tiles, none of the hardware idles on the last one.
What is best on a device at hand is what runs fastest there: measure it.
"""


def multiple_for(round_to: int | str) -> int:
    """Return the number of channels that a group should keep a multiple of.

    Args:
        round_to: The number itself, or a name in :data:`DEVICE_MULTIPLES`.

    Raises:
        InputError: It is neither.
    """
    if isinstance(round_to, str):
        if round_to not in DEVICE_MULTIPLES:
            known = ", ".join(f"'{name}' ({n})" for name, n in DEVICE_MULTIPLES.items())
            raise InputError(
                f"`round_to` must be a whole number from 1 on, or one of {known}. Found "
                f"{short(round_to)}."
            )
        return DEVICE_MULTIPLES[round_to]
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(
            "`round_to` must be a whole number from 1 on, or the name of a device such as "
            f"'tensor-core-fp16'. Found {short(round_to)}."
        )
    return round_to


@dataclass(frozen=True)
class Safety:
    """Limits on what may be removed.

    Attributes:
        min_channels: Each group keeps at least this many channels, or all if it has fewer. A
            channel that holds several positions of a tensor, such as an attention head, counts as
            many.
        max_removed: Largest fraction of the channels of any group that may go.
        max_removed_private: The same for groups that only one of several tasks can reach, where
            nothing else in the model can take over for them, or none of the tasks: no score speaks
            for them.
        protected_quantile: Channels above this quantile of *any* task's own scores stay, however
            the tasks' scores and penalties add up. Taken over all channels that the task can
            reach; 1.0 protects none. Where there is a single row of scores it protects none
            either: nothing adds up there, and the order itself keeps the highest for last.
        round_to: Groups keep a multiple of this many channels; a number, or a name in
            :data:`~taskprune.solver.safety.DEVICE_MULTIPLES` such as ``"tensor-core-fp16"``. A
            group may keep all, and where the multiples would miss the target by more than 0.5 % a
            few groups do not keep one; the report names them.
        max_loss_increase: By which fraction of itself the loss of a task may rise when the
            channels go, 0.05 for 5 %: one number for all tasks, or ``{task: number}`` for some.
            Predicted to first order, see :mod:`~taskprune.solver.loss_budget`; in steps the
            predictions add up, each from scores taken anew. Needs a criterion that knows, as the
            default does.
        unused: Names or shell patterns of parameters, or of modules with all below them, that
            nothing ever runs. Groups stay whole that a parameter could read which no traced forward
            does (:attr:`CouplingGroup.readers`); not for the sake of these, which keep their shapes
            and may not fit any more.
    """

    min_channels: int = 4
    max_removed: float = 0.9
    max_removed_private: float = 0.75
    protected_quantile: float = 0.95
    round_to: int | str = 1
    max_loss_increase: float | Mapping[str, float] | None = None
    unused: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        patterns = (self.unused,) if isinstance(self.unused, str) else tuple(self.unused)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise InputError(
                "`unused` takes names or patterns of parameters and modules, such as 'aux.*'. "
                f"Found {short(self.unused)}."
            )
        object.__setattr__(self, "unused", patterns)
        count = self.min_channels
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(
                f"`min_channels` must be a whole number from 1 on. Found {short(count)}."
            )
        multiple_for(self.round_to)
        for name in ("max_removed", "max_removed_private", "protected_quantile"):
            fraction = getattr(self, name)
            if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
                raise InputError(
                    f"`{name}` must be a fraction from 0 to 1. Found {short(fraction)}."
                )
        limits = self.max_loss_increase
        if limits is None:
            return
        for limit in limits.values() if isinstance(limits, Mapping) else (limits,):
            is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not is_number or not 0 <= limit < math.inf:
                raise InputError(
                    "`max_loss_increase` must be a fraction from 0 on, such as 0.05, or "
                    f"{{task: fraction}}. Found {short(limit)}."
                )

    @property
    def multiple(self) -> int:
        """The number of channels that ``round_to`` stands for."""
        return multiple_for(self.round_to)

    def readers(self, group: CouplingGroup) -> tuple[str, ...]:
        """Return what could read a group, is not known to do so, and is not declared unused."""
        return tuple(name for name in group.readers if not self.is_unused(name))

    def is_unused(self, name: str) -> bool:
        """Whether a parameter is declared to be run by nothing."""
        return any(
            fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
            for pattern in self.unused
        )

    def loss_limits(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return ``max_loss_increase`` by task; empty where there is no limit."""
        limits = self.max_loss_increase
        if limits is None:
            return {}
        return dict(limits) if isinstance(limits, Mapping) else dict.fromkeys(tasks, limits)
