"""The card of a pruned model: what it was, what is left, and how that is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskprune.plan.plan import PruningPlan
from taskprune.report.record import PruneReport, cost_lines
from taskprune.version import __version__

_LOAD = """```python
from taskprune.integrations.transformers import from_pretrained

model = from_pretrained("path/to/this/folder")
```"""


def model_card(
    model_class: str, base_model: str, plan: PruningPlan, report: PruneReport | None
) -> str:
    """Return the text of a ``README.md`` with metadata for the Hub.

    Args:
        model_class: Name of the model's class.
        base_model: What was pruned; empty if nobody knows.
        plan: The plan that made the model.
        report: Its figures, if at hand.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",
        tags=["taskprune", "pruned"],
        base_model=base_model if _is_on_the_hub(base_model) else None,
    )
    name = f"`{base_model}`" if base_model else "A model whose name its configuration does not tell"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {model_class}, pruned",
        f"{name}, structurally pruned by taskprune {__version__}: channels and heads are gone from "
        f"its tensors. The plan {plan.summary()}.",
        f"Its widths are in the plan, not in `config.json`, so it is loaded by\n\n{_LOAD}",
    ]
    parts += _figures(report) if report is not None else _sizes(plan)
    return "\n\n".join(parts) + "\n"


def _is_on_the_hub(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return bool(name) and not Path(name).exists()


def _sizes(plan: PruningPlan) -> list[str]:
    rows = [
        (name, f"{before:,}", f"{after:,}", f"{1 - after / max(1, before):.1%}")
        for name, (before, after) in plan.costs.items()
    ]
    return ["## Sizes", _table(("", "original", "pruned", "removed"), rows)] if rows else []


def _figures(report: PruneReport) -> list[str]:
    costs = [(c.name, c.before, c.after, f"{1 - c.left:.1%}") for c in cost_lines(report)]
    parts = ["## Sizes", _table(("", "original", "pruned", "removed"), costs)]
    held = [step.metrics for step in report.steps if not step.undone]
    after = held[-1] if held else report.metrics
    losses = report.compensation.losses if report.compensation is not None else {}
    if report.metrics or losses or report.tasks:
        parts.append("## Tasks")
    if report.metrics:
        rows = [(t, f"{v:.4g}", f"{after[t]:.4g}") for t, v in report.metrics.items()]
        parts.append(_table(("metric on held-out data", "original", "pruned"), rows))
    if losses:
        columns = ("loss on the calibration data", "original", "channels removed", "re-weighted")
        parts.append(
            _table(
                columns,
                [
                    (task, f"{own.original:.4g}", f"{own.sliced:.4g}", f"{own.compensated:.4g}")
                    for task, own in losses.items()
                ],
            )
        )
    if report.tasks:
        gone = [(t.task, f"{t.dropped} of {t.channels}") for t in report.tasks]
        parts.append(_table(("task", "channels removed"), gone))
    if report.metrics or losses:
        parts.append("Measured when the model was pruned, before any training after that.")
    verified = (
        f"Verified: {report.verification}."
        if report.verification is not None
        else "The pruned model was not compared with the original."
    )
    parts += [
        "## How it was pruned, and what was verified",
        f"To {report.budget}, by {report.criterion}, on {report.calibration_batches} calibration "
        f"batches. {verified}",
    ]
    if report.notes:
        parts.append("\n".join(f"- {note}" for note in report.notes))
    return parts


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, (":--", *["--:"] * (len(headings) - 1)), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
