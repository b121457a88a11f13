"""Tensors of the package's own say where they are, whatever the default device is."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "taskprune"
MAKERS = {
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip


def is_made_anywhere(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MAKERS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and all(keyword.arg != "device" for keyword in node.keywords)
    )


def test_no_tensor_is_made_on_the_default_device() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "driving"
        for node in ast.walk(ast.parse(path.read_text()))
        if is_made_anywhere(node)
    ]
    assert found == []
