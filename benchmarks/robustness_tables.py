"""The tables of what random architectures came to, for ``report.py``."""

from __future__ import annotations

from typing import Any

from markdown_tables import Columns, View, markdown

STAGES = {
    "oracles": "random channels removed equals the masked original; permuted: same outputs",
    "prune": "pruned and verified by the front door",
    "reload": "saved, and loaded into the original class",
    "distil": "distilled for two steps",
    "export": "exported by `torch.export`, where the original is",
    "given back": "original as before: weights, gradients, flags, hooks, attributes, generators",
}
REASONS = {
    "literal": "the code writes their number down",
    "attribute": "no assignment of attributes makes the code follow",
    "structure": "the mathematics needs them: positions, kernels, factors of a reshape",
    "unknown": "an operator without a rule",
}


def fuzzing_summary(content: dict[str, Any]) -> str:
    """Return in a sentence how many nets were tried, and what was lost."""
    first, last = content["seeds"]
    return (
        f"{content['nets']:,} nets (seeds {first} to {last}), {content['compensated']:,} of them "
        f"compensated on data; the largest relative error in float64 is "
        f"{content['worst error']:.1e}; {len(content['lost'])} lost; "
        f"{content['processor hours']:.1f} hours of one core."
    )


def fuzzing_stages(content: dict[str, Any]) -> str:
    """Return how each stage ended: a row a stage."""
    rows = [
        [STAGES[row["stage"]], *(f"{row[how]:,}" for how in ("ok", "refused", "wrong", "raw"))]
        for row in content["stages"]
    ]
    return markdown(["", "held", "refused by name", "wrong", "raw errors"], rows)


KINDS = Columns(
    (
        ("nets with", "{kind}"),
        *((key, f"{{{key}}}") for key in ("tried", "pruned", "refused", "lost")),
        ("channels that stay", "{frozen %:.1f} %"),
    ),
    records="kinds",
)


def fuzzing_reasons(content: dict[str, Any]) -> str:
    """Return why channels stayed, and why whole nets were refused."""
    total = sum(content["frozen"].values())
    rows = [
        [f"channels: {REASONS.get(kind, kind)}", f"{100 * n / total:.1f} % of those that stay"]
        for kind, n in content["frozen"].items()
    ]
    rows += [
        [f"{one['stage']}: {one['reason']}", f"{one['nets']:,} nets"] for one in content["refusals"]
    ]
    return markdown(["reason", "how often"], rows)


def fuzzing_lost(content: dict[str, Any]) -> str:
    """Return each net that was lost and how."""
    if not content["lost"]:
        return "None."
    rows = [[one["what"].replace("|", "\\|"), str(one["seed"])] for one in content["lost"]]
    return markdown(["what happened", "seed"], rows)


MUTATION = Columns(
    (
        ("room", "`{room}`"),
        ("faults that mutmut can make", "{faults:,}"),
        ("tried", "{tried}"),
        ("noticed", "{noticed}"),
        ("cannot be noticed", "{explained}"),
        ("not noticed", "{not noticed}"),
    )
)


def _readable(fault: str) -> str:
    """Return where a fault is, without what mutmut makes of names."""
    where = fault.removeprefix("taskprune.").partition("__mutmut")[0]
    return f"`{where.replace('.xǁ', '.').replace('ǁ', '.').replace('.x_', '.')}`"


def mutation_survivors(content: dict[str, Any]) -> str:
    """Return each fault that no test noticed, and what was read in it."""
    rows = [
        [
            _readable(one["fault"]),
            "<br>".join(f"`{line}`" for line in one["change"]).replace("|", "\\|"),
            one["read"] or "open",
        ]
        for one in content["survivors"]
    ]
    return markdown(["where", "fault", "why"], rows) if rows else "None."


VIEWS: dict[str, View] = {
    "mutation": MUTATION,
    "mutation.survivors": mutation_survivors,
    "fuzzing": fuzzing_summary,
    "fuzzing.stages": fuzzing_stages,
    "fuzzing.kinds": KINDS,
    "fuzzing.reasons": fuzzing_reasons,
    "fuzzing.lost": fuzzing_lost,
}
"""What is made of ``results/fuzzing.json`` and ``results/mutation.json``."""
