"""Masked generative distillation (MGD): rebuild the teacher's map from part of the student's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskprune.distillation.losses.feature_layout import at_least_float32, paired_rows
from taskprune.errors import InputError


@dataclass(frozen=True)
class MGD:
    r"""Minimise :math:`\frac{1}{BCP} \| T - G(A(S) \odot M) \|^2` with a generator per tap.

    :math:`M` hides a position of all channels with probability ``mask_ratio``, drawn anew in each
    call; :math:`G` is conv3x3, ReLU, conv3x3. The generators learn with the student and are thrown
    away after training. The paper sums over positions and channels and weighs with 2e-5; the mean
    used here is the same but for a factor, and keeps the weight apart from the resolution.

    Example:
        >>> DistillSettings(steps=1000, feature_loss=MGD(mask_ratio=0.5))

    Attributes:
        mask_ratio: Part of the positions that is hidden.

    References:
        Yang et al., *Masked Generative Distillation*, ECCV 2022, arXiv:2205.01529, equations 3
        to 5.
    """

    mask_ratio: float = 0.65

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio < 1:
            raise InputError(
                f"`MGD.mask_ratio` must lie between 0 and 1. Found {self.mask_ratio!r}."
            )

    def for_feature(self, teacher: Tensor) -> MaskedGeneration:
        """Return the trained loss of one tap.

        Args:
            teacher: The aligned teacher feature ``[B, C, H, W]``.

        Raises:
            InputError: The feature is no map.
        """
        if teacher.dim() != 4:
            raise InputError(
                "MGD rebuilds hidden positions from their neighbours on a map [B, C, H, W]. Found "
                f"shape {tuple(teacher.shape)}. Use `pkd` or `mse` for tokens, vectors and volumes."
            )
        return MaskedGeneration(teacher.shape[1], self.mask_ratio).to(teacher.device)


class MaskedGeneration(nn.Module):
    """The loss of one tap with its generator.

    Args:
        n_channels: Of the aligned features.
        mask_ratio: Part of the positions that is hidden.
    """

    def __init__(self, n_channels: int, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.generator = nn.Sequential(
            nn.Conv2d(n_channels, n_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(n_channels, n_channels, 3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of aligned maps ``[B, C, H, W]``.

        Raises:
            InputError: The shapes differ.
        """
        seen = at_least_float32(student)
        n_images, _, height, width = seen.shape
        hidden = torch.rand(n_images, 1, height, width, device=seen.device) < self.mask_ratio
        dtype = next(self.generator.parameters()).dtype
        rebuilt = self.generator(seen.masked_fill(hidden, 0.0).to(dtype))
        rows, target = paired_rows(rebuilt, teacher)
        return (rows - target).square().mean()
