"""Distillation of logits (KD): the teacher's softened answers as targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from taskprune.distillation.losses.feature_layout import at_least_float32
from taskprune.errors import InputError, short


def logit_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, dim: int | None = 1
) -> Tensor:
    r"""Return :math:`T^2 \, \mathrm{KL}(\sigma(t / T) \,\|\, \sigma(s / T))`, averaged.

    :math:`\sigma` is the softmax over classes, or, for logits of independent yes-or-no answers
    (``dim=None``), the sigmoid of each. The factor :math:`T^2` keeps the gradient's size apart from
    the temperature.

    Args:
        student: Logits of any shape.
        teacher: The same shape.
        temperature: ``T``.
        dim: Axis of classes; ``None`` for sigmoid outputs.

    Raises:
        InputError: The shapes differ, the temperature is not positive or ``dim`` is no axis.

    References:
        Hinton et al., *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531,
        section 2.
    """
    if not temperature > 0:
        raise InputError(f"`temperature` must be positive. Found {short(temperature)}.")
    if student.shape != teacher.shape:
        raise InputError(
            f"Logits are compared one by one. Found shapes {tuple(student.shape)} (student) and "
            f"{tuple(teacher.shape)} (teacher)."
        )
    if dim is not None and not -student.dim() <= dim < student.dim():
        raise InputError(f"`dim={dim}` is no axis of logits of shape {tuple(student.shape)}.")
    rows = at_least_float32(student) / temperature
    target = at_least_float32(teacher) / temperature
    if dim is None:
        chance = target.sigmoid()
        divergence = chance * (F.logsigmoid(target) - F.logsigmoid(rows)) + (1 - chance) * (
            F.logsigmoid(-target) - F.logsigmoid(-rows)
        )
        return temperature**2 * divergence.mean()
    divergence = F.kl_div(
        F.log_softmax(rows, dim=dim),
        F.log_softmax(target, dim=dim),
        reduction="none",
        log_target=True,
    )
    return temperature**2 * divergence.sum(dim=dim).mean()
