"""Bring a student's and a teacher's feature to the same channels and positions.

Pruning knows which of the teacher's channels each student channel is, so the teacher's feature is
simply indexed: nothing is learnt, nothing stands between the features. Other pairs of models get a
1x1 adapter that is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import at_least_float32
from taskprune.distillation.taps import Tap
from taskprune.errors import InputError


class Alignment(nn.Module):
    """Aligns the pair of features of one tap.

    Features are brought to ``[B, C]``, ``[B, N, C]`` (three dims), ``[B, C, H, W]`` or
    ``[B, C, D, H, W]``, the student's map is resized to the teacher's by linear interpolation where
    they differ, and channels are matched by index or adapter.

    Attributes:
        label: The tap's label, for errors.
        channel_dim: Axis of channels in the student module's own layout.
        teacher_channel_dim: The teacher's.
        keep: The teacher's channels to compare with, or ``None`` for all.
        adapter: Maps student channels to teacher channels, or ``None``.
    """

    keep: Tensor | None

    def __init__(
        self,
        label: str,
        channel_dim: int,
        *,
        keep: Sequence[int] | None = None,
        adapter: nn.Linear | None = None,
        teacher_channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.label = label
        self.channel_dim = channel_dim
        self.teacher_channel_dim = (
            channel_dim if teacher_channel_dim is None else teacher_channel_dim
        )
        index = None if keep is None else torch.tensor(keep, dtype=torch.int64, device="cpu")
        self.register_buffer("keep", index, persistent=False)
        self.adapter = adapter

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the aligned ``(student, teacher)``.

        Raises:
            InputError: The tensors cannot be aligned, for example token counts that differ.
        """
        if student.dim() != teacher.dim():
            raise InputError(
                f"Tap `{self.label}`: expected features with as many dims in both models. Found "
                f"{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)."
            )
        student = _canonical(student, self.channel_dim)
        teacher = _canonical(teacher, self.teacher_channel_dim)
        if self.keep is not None:
            teacher = teacher.index_select(_canonical_dim(teacher), self.keep)
        if self.adapter is not None:
            student = _adapted(student, self.adapter)
        return self._at_same_positions(student, teacher), teacher

    def _at_same_positions(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.dim() > 3 and student.shape[2:] != teacher.shape[2:]:
            return F.interpolate(
                at_least_float32(student),
                size=teacher.shape[2:],
                mode="bilinear" if student.dim() == 4 else "trilinear",
                align_corners=False,
            )
        if student.dim() == 3 and student.shape[1] != teacher.shape[1]:
            # Tokens need not lie on a grid (class tokens, queries), so there is no way to resize.
            raise InputError(
                f"Tap `{self.label}`: {student.shape[1]} student tokens cannot be compared with "
                f"{teacher.shape[1]} teacher tokens. Feed both models the same resolution."
            )
        return student


def make_alignment(
    tap: Tap,
    student: Tensor,
    teacher: Tensor,
    *,
    keep: Sequence[int] | None = None,
    axes: tuple[int | None, int | None] = (None, None),
) -> Alignment:
    """Work out how the two features of a tap are compared.

    Args:
        tap: The tap.
        student: An example of the student's feature.
        teacher: The teacher's feature on the same batch.
        keep: The teacher's channel of each student channel, if known.
        axes: Axis of channels in student and teacher, where known from the modules and the tap
            does not say. ``None``: 1, or for three dims the last.

    Raises:
        InputError: The map does not fit the features, or their dims are not understood.
    """
    if student.dim() != teacher.dim() or not 2 <= student.dim() <= 5:
        raise InputError(
            f"Tap `{tap.label}`: expected maps [B, C, H, W] or [B, C, D, H, W], tokens [B, N, C] "
            f"or vectors [B, C] in both models. Found {tuple(student.shape)} (student) and "
            f"{tuple(teacher.shape)} (teacher)."
        )
    mine, theirs = axes
    if student.shape == teacher.shape:  # one layout, even if only one model's modules tell it
        mine, theirs = (theirs if mine is None else mine), (mine if theirs is None else theirs)
    dim = _channel_dim(tap, student, teacher, keep, mine)
    other = dim
    if tap.channel_dim is None and keep is None:
        other = _canonical_dim(teacher) if theirs is None else theirs
    n_student, n_teacher = student.shape[dim], teacher.shape[other]
    if keep is not None:
        _check_map(tap, keep, n_student, n_teacher)
    if tap.adapter or (keep is None and n_student != n_teacher):
        adapter = make_adapter(n_student, n_teacher, keep=keep).to(student.device)
        return Alignment(tap.label, dim, adapter=adapter, teacher_channel_dim=other)
    is_identity = keep is None or list(keep) == list(range(n_teacher))
    kept = None if is_identity else keep
    return Alignment(tap.label, dim, keep=kept, teacher_channel_dim=other).to(student.device)


def make_adapter(n_student: int, n_teacher: int, *, keep: Sequence[int] | None = None) -> nn.Linear:
    """Return a 1x1 adapter from student to teacher channels.

    Args:
        n_student: Channels in.
        n_teacher: Channels out.
        keep: Start as the embedding that puts student channel ``k`` at teacher channel
            ``keep[k]`` and 0 elsewhere. ``None``: torch's usual random start.
    """
    adapter = nn.Linear(n_student, n_teacher, device="cpu")
    if keep is not None:
        with torch.no_grad():
            adapter.weight.zero_()
            adapter.bias.zero_()
            adapter.weight[
                torch.tensor(keep, device="cpu"), torch.arange(n_student, device="cpu")
            ] = 1.0
    return adapter


def _canonical_dim(feature: Tensor) -> int:
    return 2 if feature.dim() == 3 else 1


def _canonical(feature: Tensor, channel_dim: int) -> Tensor:
    return feature.movedim(channel_dim, _canonical_dim(feature))


def _adapted(student: Tensor, adapter: nn.Linear) -> Tensor:
    student = student.to(adapter.weight.dtype)
    if student.dim() < 4:
        return F.linear(student, adapter.weight, adapter.bias)
    if student.dim() == 4:
        return F.conv2d(student, adapter.weight[:, :, None, None], adapter.bias)
    return F.conv3d(student, adapter.weight[:, :, None, None, None], adapter.bias)


def _channel_dim(
    tap: Tap, student: Tensor, teacher: Tensor, keep: Sequence[int] | None, axis: int | None
) -> int:
    if tap.channel_dim is not None:
        if not -student.dim() <= tap.channel_dim < student.dim():
            raise InputError(
                f"Tap `{tap.label}`: `channel_dim={tap.channel_dim}` is no axis of a feature of "
                f"shape {tuple(student.shape)}."
            )
        return tap.channel_dim % student.dim()
    usual = _canonical_dim(student) if axis is None else axis
    if keep is None:
        return usual
    # Where the map fits one other axis and not the usual one, that is it (channels-last maps of
    # Swin and the like, or as many channels left as there are positions).
    fitting = [
        dim
        for dim in range(1, student.dim())
        if student.shape[dim] == len(keep)
        and teacher.shape[dim] > max(keep, default=0)
        and all(student.shape[d] == teacher.shape[d] for d in range(student.dim()) if d != dim)
    ]
    return fitting[0] if len(fitting) == 1 else usual


def _check_map(tap: Tap, keep: Sequence[int], n_student: int, n_teacher: int) -> None:
    if len(keep) != n_student or not keep or min(keep) < 0 or max(keep) >= n_teacher:
        span = f"{min(keep)} to {max(keep)}" if keep else "none"
        raise InputError(
            f"Tap `{tap.label}`: the channel map must name one teacher channel (0 to "
            f"{n_teacher - 1}) for each of the student's {n_student} channels. Found {len(keep)} "
            f"entries, {span}. Is it another plan's map, or is the channel axis another one (set "
            "`Tap.channel_dim`)?"
        )
