"""Collect the overloads of ATen operators by name."""

from __future__ import annotations

from functools import cache

import torch
from torch._ops import OpOverload


def overloads(*names: str) -> list[OpOverload]:
    """Return all functional and in-place overloads of the named operators that this torch has.

    A name stands for its in-place form too. Variants that write to an ``out`` tensor are left
    out: they go by the rule of the one that returns it, see :func:`functional_form`.
    """
    found: list[OpOverload] = []
    for form in (form for name in names for form in (name, f"{name}_")):
        packet = getattr(torch.ops.aten, form, None)
        if packet is None:
            continue
        found += [
            getattr(packet, overload)
            for overload in packet.overloads()
            if not _written(getattr(packet, overload))
        ]
    return found


@cache
def functional_form(target: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the overload that computes what another one writes to its ``out`` arguments.

    Args:
        target: Name of an overload, such as ``"aten.div.out"``.

    Returns:
        ``("aten.div.Tensor", ("out",))``; ``None`` where nothing is written or nothing computes it.
    """
    namespace, name, overload = target.split(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    writing = getattr(packet, overload)
    written = _written(writing)
    for other in packet.overloads() if written else ():
        form = getattr(packet, other)
        if not _written(form) and _parameters(form) == _parameters(writing):
            return str(form), written
    return None


def _written(operator: OpOverload) -> tuple[str, ...]:
    return tuple(a.name for a in operator._schema.arguments if a.is_out)


def _parameters(operator: OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in operator._schema.arguments if not a.is_out]
