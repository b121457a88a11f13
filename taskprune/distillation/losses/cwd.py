"""Channel-wise distillation (CWD): each channel as a distribution over positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import check_positions, paired_rows, positional
from taskprune.errors import InputError


@positional
def cwd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    r"""Return :math:`\frac{T^2}{BC}\sum_{b,c} \mathrm{KL}(\phi(t_{b,c}) \,\|\, \phi(s_{b,c}))`.

    :math:`\phi(x) = \mathrm{softmax}_p(x_p / T)` runs over positions. It follows where a channel
    peaks and is blind to a constant added to a channel; strong for segmentation.

    Args:
        student: ``[B, C, H, W]``, ``[B, C, D, H, W]`` or ``[B, N, C]``.
        teacher: The same shape.
        temperature: ``T``; bind another value with ``functools.partial(cwd, temperature=1.0)``.

    Raises:
        InputError: The shapes differ, they have one position, or the temperature is not positive.

    References:
        Shu et al., *Channel-wise Knowledge Distillation for Dense Prediction*, ICCV 2021,
        arXiv:2011.13256, equation 5.
    """
    if not temperature > 0:
        raise InputError(f"`temperature` must be positive. Found {temperature!r}.")
    rows, target = paired_rows(student, teacher)
    check_positions(rows)
    divergence = F.kl_div(
        F.log_softmax(rows / temperature, dim=2),
        F.log_softmax(target / temperature, dim=2),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(dim=2).mean()
