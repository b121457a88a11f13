"""The table of operator rules, the decorator that fills it, and the names of overloads."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch._ops import OpOverload

from taskprune.errors import InputError, short

if TYPE_CHECKING:
    from taskprune.coupling.context import RuleContext


ChannelRule: TypeAlias = "Callable[[RuleContext], None]"
"""Says what one operator does to channels, through the methods of its context."""

_RULES: dict[str, ChannelRule] = {}


def channel_rule(*operators: OpOverload) -> Callable[[ChannelRule], ChannelRule]:
    """Register the decorated function as the rule of ``operators``.

    A rule looks at the operator's arguments through :class:`RuleContext`, ties and freezes axes,
    and hands on those of the results. Overloads of one's own libraries are as welcome as ATen's::

        @channel_rule(torch.ops.mylib.swish.default)
        def _swish(ctx: RuleContext) -> None:
            ctx.produce(ctx.axes("input"), zero=True)

    Raises:
        InputError: An operator already has a rule, or is not an overload such as
            ``torch.ops.aten.relu.default``.
    """

    def register(rule: ChannelRule) -> ChannelRule:
        for operator in operators:
            if not isinstance(operator, OpOverload):
                raise InputError(
                    "A channel rule is registered for operator overloads such as "
                    f"torch.ops.aten.relu.default. Found {short(operator)}."
                )
            name = str(operator)
            if name in _RULES:
                raise InputError(
                    f"The operator {name} already has a channel rule: {_RULES[name].__module__}."
                    f"{_RULES[name].__qualname__}. An operator can have only one."
                )
            _RULES[name] = rule
        return rule

    return register


def find_rule(target: str) -> ChannelRule | None:
    """Return the rule of an operator, if it has one."""
    return _RULES.get(target)


def known_operators() -> tuple[str, ...]:
    """Return the names of all operators that have a rule, sorted."""
    return tuple(sorted(_RULES))


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


def operator_of(target: str) -> OpOverload:
    """Return an overload by its name, such as ``"aten.div.out"``."""
    namespace, name, overload = target.split(".")
    found: OpOverload = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return found


@cache
def functional_form(target: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the overload that computes what another one writes to its ``out`` arguments.

    Args:
        target: Name of an overload, such as ``"aten.div.out"``.

    Returns:
        ``("aten.div.Tensor", ("out",))``; ``None`` where nothing is written or nothing computes it.
    """
    writing = operator_of(target)
    packet, written = writing.overloadpacket, _written(writing)
    for other in packet.overloads() if written else ():
        form = getattr(packet, other)
        if not _written(form) and _parameters(form) == _parameters(writing):
            return str(form), written
    return None


def _written(operator: OpOverload) -> tuple[str, ...]:
    return tuple(a.name for a in operator._schema.arguments if a.is_out)


def _parameters(operator: OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in operator._schema.arguments if not a.is_out]
