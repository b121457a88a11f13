"""Write docs/operators.md, the table of operators with a channel rule, from the registry.

    python benchmarks/operators.py

A test compares the page with what this would write.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from pathlib import Path

import torch

import taskprune.coupling  # noqa: F401 - registers all rules
from taskprune.coupling.registry import find_rule, known_operators

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
RULES = "taskprune.coupling.rules."

HEAD = """# Operators with a channel rule

Written by `python benchmarks/operators.py` from the registry; do not edit. Operators are ATen's,
as they appear when a model runs: `nn.Conv2d` is `convolution`, `x @ y` is `matmul`, `mm` or `bmm`.
An operator that is not listed keeps the channels that it touches, and the report says where;
`strict=True` raises. To add one, see [extending](extending.md).
"""


def rendered() -> str:
    """Return the page."""
    families: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    documentation: dict[str, str] = {}
    operators = [name for name in known_operators() if name.startswith("aten.")]
    for operator in operators:
        rule = find_rule(operator)
        assert rule is not None
        if not rule.__module__.startswith(RULES):
            continue
        family = rule.__module__.removeprefix(RULES)
        module = inspect.getmodule(rule)
        documentation[family] = (inspect.getdoc(module) or "").partition("\n")[0]
        name, _, overload = operator.removeprefix("aten.").rpartition(".")
        # The in-place form goes with the other.
        name = name if name.endswith("__") else name.removesuffix("_")
        families[family][name].append(overload)
    n_names = sum(len(names) for names in families.values())
    n_overloads = sum(len(o) for names in families.values() for o in names.values())
    torch_release = ".".join(torch.__version__.split(".")[:2])
    count = (
        f"{n_names} operators, {n_overloads} overloads and in-place forms, torch {torch_release}"
    )
    parts = [HEAD, f"{count}.\n"]
    for family in sorted(families):
        names = ", ".join(f"`{name}`" for name in sorted(families[family]))
        parts.append(f"## {family.capitalize()}\n\n{documentation[family]}\n\n{names}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
