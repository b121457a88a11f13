"""Draw the pictures of the page on concepts, from the code: ``python docs/draw_concepts.py``.

All are of the network that ``taskprune init`` writes, trained and pruned here in some seconds, but
for the budgets, which are what ``benchmarks/latency.py`` has measured. Writes
``docs/images/concept_*.png``.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import taskprune
from taskprune.calling.outputs import flatten_outputs
from taskprune.commands import starter
from taskprune.testing.oracles import masked_model

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE, PALE, INK = "#2f6f9f", "#c9701b", "#dfe6ec", "#1d2226"


def main() -> None:
    """Draw all of them."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    model = starter.model()
    data = list(starter.data())
    result = taskprune.prune(model, starter.tasks(), 0.6, data=data)
    coupling(model, result)
    importance(result)
    compensation(result)
    budgets()
    verification(model, result, data[0][0])


def coupling(model: torch.nn.Module, result: taskprune.PruneResult) -> None:
    """One channel of the group of ``trunk.3``, in all tensors that hold it."""
    group = next(g for g in result.groups if g.name == "trunk.3")
    channel = 9
    parameters = dict(model.named_parameters())
    members = [m for m in group.members if m.name in parameters]
    widths = [1.0 if parameters[m.name].ndim > 1 else 0.55 for m in members]
    figure, axes = plt.subplots(1, len(members), figsize=(9, 2.6), width_ratios=widths)
    for axis, member in zip(axes, members, strict=True):
        _entries(axis, parameters[member.name], member.dim, channel, member.name)
    _save(figure, "coupling")


def _entries(axis: Axes, tensor: torch.Tensor, dim: int, channel: int, name: str) -> None:
    rows, columns = (*tensor.shape, 1)[:2]
    axis.add_patch(Rectangle((0, 0), columns, rows, color=PALE))
    corner, size = ((0, channel), (columns, 1)) if dim == 0 else ((channel, 0), (1, rows))
    axis.add_patch(Rectangle(corner, *size, color=BLUE if dim == 0 else ORANGE))
    axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axis.set_title(f"{name}\n{list(tensor.shape)}", fontsize=7)
    for spine in axis.spines.values():
        spine.set_visible(False)


def importance(result: taskprune.PruneResult) -> None:
    """What each task says of the channels of a shared group, and which of them go."""
    scores = result.scores["trunk.3"]
    order = np.argsort(scores.total.numpy())
    dropped = set(result.plan.drop["trunk.3"])
    figure, axes = plt.subplots(
        len(result.scores.tasks) + 1, 1, figsize=(9, 3.2), sharex=True, layout="constrained"
    )
    rows = [*zip(result.scores.tasks, scores.per_task.numpy(), strict=True)]
    for axis, (name, values) in zip(
        axes, [*rows, ("the order", scores.total.numpy())], strict=True
    ):
        for place, channel in enumerate(order):
            if int(channel) in dropped:
                axis.axvspan(place - 0.5, place + 0.5, color=PALE, linewidth=0)
        axis.bar(range(len(order)), values[order], color=BLUE)
        axis.set_xlim(-0.5, len(order) - 0.5)
        axis.set_ylabel(name)
        axis.set_yticks([])
    axes[-1].set_xticks(range(len(order)), [str(channel) for channel in order], fontsize=7)
    axes[-1].set_xlabel("channels of trunk.3, least needed first; those on grey go")
    _save(figure, "importance")


def compensation(result: taskprune.PruneResult) -> None:
    """Each task's loss: of the original, as sliced, with what stays re-weighted."""
    assert result.report.compensation is not None
    losses = result.report.compensation.losses
    figure, axes = plt.subplots(1, len(losses), figsize=(9, 2), layout="constrained")
    for axis, (task, loss) in zip(axes, losses.items(), strict=True):
        values = [loss.original, loss.sliced, loss.compensated]
        bars = axis.barh(
            ["original", "as sliced", "compensated"], values, color=[PALE, ORANGE, BLUE]
        )
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.invert_yaxis()
        axis.set(title=f"loss of {task}", xticks=[], xlim=(0, 1.15 * max(values)))
    _save(figure, "compensation")


def budgets() -> None:
    """The same bound on parameters, alone and with others."""
    rows = json.loads((ROOT / "benchmarks/results/latency.json").read_text())["rows"][:4]
    whole = rows[0]["median ms"]
    names = ["original", "parameters", "… and multiply-adds", "… and latency"]
    figure, axis = plt.subplots(figsize=(9, 2.4), layout="constrained")
    place = np.arange(len(rows))
    kinds = (
        ("parameters", [100 - row["params removed %"] for row in rows], PALE),
        ("multiply-adds", [100 - row["macs removed %"] for row in rows], ORANGE),
        ("latency", [100 * row["median ms"] / whole for row in rows], BLUE),
    )
    for number, (kind, values, colour) in enumerate(kinds):
        bars = axis.bar(place + 0.27 * (number - 1), values, 0.25, label=kind, color=colour)
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.set_xticks(place, names)
    axis.set(ylabel="% left", yticks=[], ylim=(0, 115))
    axis.legend(frameon=False, ncols=3, loc="upper right")
    _save(figure, "budgets")


def verification(
    model: torch.nn.Module, result: taskprune.PruneResult, images: torch.Tensor
) -> None:
    """Outputs of the smaller network over those of the masked, and of the whole original."""
    smaller = taskprune.apply_plan(model, result.plan)
    with torch.no_grad():
        small = flatten_outputs(smaller(images))["mask"].flatten()
        silenced = flatten_outputs(masked_model(model, result.plan)(images))["mask"].flatten()
        whole = flatten_outputs(model(images))["mask"].flatten()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    for axis, values, name in (
        (axes[0], silenced, "the original, its removed channels silenced"),
        (axes[1], whole, "the original"),
    ):
        axis.plot([small.min(), small.max()], [small.min(), small.max()], color=PALE, zorder=0)
        axis.scatter(values, small, s=3, color=BLUE)
        axis.set(xlabel=name, title=f"largest difference {float((values - small).abs().max()):.1e}")
    axes[0].set_ylabel("the smaller network, as sliced")
    _save(figure, "verification")


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(IMAGES / f"concept_{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
