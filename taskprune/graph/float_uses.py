"""Hear of sizes that a float stands to the left of.

``1.0 / size`` and ``0.5 * size`` never ask the integer on their right, so a
:class:`~taskprune.graph.sizes.TracedInt` cannot report them itself. But the result is a float, and
it matters once it is handed to a torch function. When that happens, the arithmetic in the calling
function is read in its source, and its operands are worked out once more from the variables there.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
import textwrap
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType, ModuleType
from typing import Any

from torch import Tensor, nn

from taskprune.graph.sizes import TracedInt

_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"sqrt": math.sqrt, "float": float, "int": int}


class _NotKnownError(Exception):
    """An expression is more than arithmetic on variables."""


def has_float(values: tuple[Any, ...]) -> bool:
    """Whether a float is among the arguments of a call."""
    return any(
        type(value) is float or (isinstance(value, tuple | list) and has_float(tuple(value)))
        for value in values
    )


def report_float_uses(frame: FrameType) -> None:
    """Report the sizes that meet a float on their left in the function that ``frame`` runs.

    Missed: functions without source, operands that were given another value since, and floats that
    another function returned.
    """
    for left, right in _products(frame.f_code):
        try:
            if type(_value(left, frame)) is float:
                size = _value(right, frame)
                if isinstance(size, TracedInt):
                    size.observer.escape(size.expr)
        except Exception:  # noqa: BLE001, PERF203 - of a branch not taken, or not yet
            continue


@lru_cache(maxsize=4096)
def _products(code: CodeType) -> tuple[tuple[ast.expr, ast.expr], ...]:
    """Return the operands of all arithmetic in a function."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError):
        return ()
    return tuple(
        (node.left, node.right)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC
    )


def _value(node: ast.expr, frame: FrameType) -> Any:
    """Work out an expression of numbers, without running any code of the model."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        names = frame.f_locals if node.id in frame.f_locals else frame.f_globals
        return names[node.id]
    if isinstance(node, ast.Attribute):
        return _attribute(_value(node.value, frame), node.attr)
    if isinstance(node, ast.Subscript):
        container = _value(node.value, frame)
        if isinstance(container, tuple | list | dict):
            return container[_value(node.slice, frame)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand, frame)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _ARITHMETIC[type(node.op)](_number(node.left, frame), _number(node.right, frame))
    if isinstance(node, ast.Call):
        return _called(node, frame)
    raise _NotKnownError


def _number(node: ast.expr, frame: FrameType) -> Any:
    value = _value(node, frame)
    if not isinstance(value, int | float):
        raise _NotKnownError
    return value


def _attribute(owner: Any, name: str) -> Any:
    if (isinstance(owner, Tensor) and name == "shape") or isinstance(owner, ModuleType):
        return getattr(owner, name)
    if isinstance(owner, nn.Module):
        state = vars(owner)
        for registry in (state, state["_parameters"], state["_buffers"], state["_modules"]):
            if name in registry:
                return registry[name]
    raise _NotKnownError


def _called(node: ast.Call, frame: FrameType) -> Any:
    function = node.func
    if isinstance(function, ast.Attribute) and function.attr == "size":
        owner = _value(function.value, frame)
        if isinstance(owner, Tensor):
            return owner.size(*(_value(argument, frame) for argument in node.args))
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in _FUNCTIONS and len(node.args) == 1:
        return _FUNCTIONS[name](_number(node.args[0], frame))
    raise _NotKnownError
