"""Mean squared error between features."""

from __future__ import annotations

from torch import Tensor

from taskprune.distillation.losses.feature_layout import paired_rows


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Return :math:`\frac{1}{BCP}\sum (s - t)^2`.

    It scales with the square of the features, so it usually needs a weight per layer.

    Args:
        student: ``[B, C, H, W]``, ``[B, C, D, H, W]``, ``[B, N, C]`` or ``[B, C]``.
        teacher: The same shape.

    Raises:
        InputError: The shapes differ.

    References:
        Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015, arXiv:1412.6550.
    """
    rows, target = paired_rows(student, teacher)
    return (rows - target).square().mean()
