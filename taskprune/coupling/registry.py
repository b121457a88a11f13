"""The table of operator rules, and the decorator that fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

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
