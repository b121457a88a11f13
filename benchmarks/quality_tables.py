"""Tables of what pruning and training cost the tasks, for ``report.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markdown_tables import IMAGES, PAGES, Columns, Picture, View, markdown, with_spread

HEADLINES = {"detection": ("map50", "recall"), "drivable": ("miou",), "lane": ("iou", "accuracy")}
LABELS = {
    "map50": "mAP50",
    "recall": "recall",
    "miou": "mIoU",
    "iou": "IoU",
    "accuracy": "accuracy",
}


def demo_table(content: dict[str, Any]) -> str:
    """Return teacher, student as sliced, pruned and distilled: size, speed and every task."""
    metrics, costs = content["metrics"], content["prune"]["costs"]
    columns = [(task, name) for task, names in HEADLINES.items() for name in names]
    rows = []
    for model in (name for name in ("teacher", "sliced", "pruned", "distilled") if name in metrics):
        after = int(model != "teacher")
        latency = {"teacher": "teacher", "distilled": "student"}.get(model)
        rows.append(
            [
                model,
                f"{costs['params'][after] / 1e6:.2f} M",
                f"{costs['macs'][after] / 1e6:.0f} M",
                f"{content['latency_ms'][latency]['median_ms']:.1f} ms" if latency else "",
                *(f"{100 * metrics[model][task][name]:.1f}" for task, name in columns),
            ]
        )
    headings = ["", "parameters", "MACs", "latency"]
    return markdown(headings + [f"{task} {LABELS[name]}" for task, name in columns], rows)


def criteria_table(content: dict[str, Any]) -> str:
    """Return the comparison of importance criteria: a row per network, budget and criterion."""
    lines = []
    for row in content["rows"]:
        cells = [row["network"], f"{100 * row['MACs kept']:.0f} %", row["criterion"]]
        cells.append(f"{row['params removed %']:.0f} %")
        for when in ("before", "after"):
            cells.append(with_spread((row[f"worst {when}"], row[f"worst {when} ±"]), "{:+.1f}"))
            tasks = row[f"tasks {when}"] or {}
            cells.append(", ".join(f"{name} {lost:+.1f}" for name, lost in tasks.items()))
        lines.append(cells)
    headings = ["network", "MACs kept", "criterion", "parameters removed"]
    for when in ("before fine-tuning", "after"):
        headings += [f"worst task {when}", "each task"]
    return markdown(headings, lines)


def compensation_table(content: dict[str, Any]) -> str:
    """Return what is left of each task without training: a row per network, budget and way."""
    rows = []
    for row in content["rows"]:
        tasks = ", ".join(f"{name} {lost:+.1f}" for name, lost in row["tasks"].items())
        worst = with_spread((row["worst task"], row["worst task ±"]), "{:+.1f}")
        asked = "" if row["asked"] is None else f"≥ {row['asked']:+.1f}"
        told = [row[key] for key in ("network", "budget", "way")]
        rows.append([*told, str(row["seeds"]), worst, asked, tasks])
    return markdown(["network", "budget", "way", "seeds", "worst task", "asked", "each task"], rows)


def compensation_criteria(content: dict[str, Any]) -> str:
    """Return the worst task of each criterion, compensated in steps: a column per budget."""
    by_way = {"compensated, in steps": "task_change"} | {
        f"{name}, compensated, in steps": name
        for name in ("output_change", "task_taylor", "Taylor", "without labels")
    }
    found = {
        (row["network"], row["budget"], by_way[row["way"]]): row
        for row in content["rows"]
        if row["way"] in by_way and row["seeds"] == 3
    }
    columns = [
        column
        for column in dict.fromkeys((row["network"], row["budget"]) for row in content["rows"])
        if sum((*column, criterion) in found for criterion in by_way.values()) > 1
    ]
    return markdown(
        ["criterion", *(f"{network}, {budget}" for network, budget in columns)],
        [
            [
                criterion,
                *(
                    with_spread([row["worst task"], row["worst task ±"]], "{:+.1f}")
                    if (row := found.get((*column, criterion)))
                    else ""
                    for column in columns
                ),
            ]
            for criterion in by_way.values()
        ],
    )


def distillation_table(content: dict[str, Any]) -> str:
    """Return what each way of fine-tuning brings back, one row per set of images, arm and steps."""
    rows = content["arms"]
    lines = []
    for row in rows:
        cells = [row["on"], row["arm"], str(row["steps"] or "")]
        for task, change in row["change"].items():
            cells.append(with_spread(change, "{:+.1f}"))
            cells.append(with_spread(row["recovered"].get(task, (None, None)), "{:.0f}"))
        lines.append(cells)
    headings = ["images", "after", "steps"]
    for task in rows[0]["change"]:
        headings += [f"{task}, change", "recovered %"]
    asked = content["settings"]
    said = (
        f"−{100 * asked['ratio']:.1f} % of the parameters, steps of 8 images, "
        f"{len(asked['seeds'])} seeds, judged on at most {asked['images']} unseen images."
    )
    return f"{markdown(headings, lines)}\n\n*{said}*"


def distillation_plots(content: dict[str, Any]) -> str:
    """Return a picture per set of images; :mod:`report` draws them."""
    return "\n\n".join(
        f"![Share of each task's drop that comes back, {on}]({path.relative_to(PAGES)})"
        for on, path in plots(content).items()
    )


def plots(content: dict[str, Any]) -> dict[str, Path]:
    """Return where the picture of each set of images is."""
    images = dict.fromkeys(row["on"] for row in content["arms"])
    return {on: IMAGES / f"distillation_{on}.png" for on in images}


def fusion_recipe(content: dict[str, Any]) -> str:
    """Return how long the recipe takes, in one line."""
    recipe = content["recipe"]
    return (
        f"{content['params'] / 1e6:.2f} M parameters, {content['macs'] / 1e9:.2f} G multiply-adds "
        f"a frame; {recipe['steps']} steps of {recipe['batch_size']} scenes, none seen twice, in "
        f"{content['cpu_minutes']:.0f} minutes of processor time; judged on "
        f"{content['n_validation']} unseen scenes."
    )


def modality_table(content: dict[str, Any]) -> str:
    """Return AP on the fusion net before and after fine-tuning: a row per ratio and criterion."""
    whole = content["teacher"]
    measured = [when for when in ("before", "after") if any(row[when] for row in content["rows"])]
    figures = [(when, condition) for when in measured for condition in whole]
    unpruned = [f"{whole[condition]['AP']:.1f}" for _, condition in figures]
    lines = [["", "unpruned", "", "", *unpruned, f"{whole['clean']['IoU']:.1f}"]]
    for row in content["rows"]:
        kept = ", ".join(f"{label} {100 * share:.0f}" for label, share in row["kept"].items())
        cells = [f"{100 * row['ratio']:.0f} %", row["criterion"]]
        cells += [f"{100 * row['removed']['macs']:.0f} %", kept]
        for when, condition in figures:
            judged = row[when].get(condition)
            cells.append(with_spread(judged["AP"], "{:.1f}") if judged else "–")
        ground = (row["after"] or row["before"])["clean"]["IoU"]
        lines.append([*cells, with_spread(ground, "{:.1f}")])
    headings = ["removed", "criterion", "MACs removed", "channels kept, %"]
    headings += [f"{condition}, {when}" for when, condition in figures]
    return markdown([*headings, "drivable IoU, clean"], lines)


def modality_duels(content: dict[str, Any]) -> str:
    """Return by how many points of AP criteria across sensors are ahead of the others, by seed.

    At one half and at four fifths of the parameters; below, criteria hardly differ.
    """
    lines = [
        [f"{100 * row['ratio']:.0f} %", "after" if row["steps"] else "before"]
        + [f"{row['criterion']} − {row['against']}"]
        + [with_spread(row[condition], "{:+.1f}") for condition in content["teacher"]]
        for row in content["duels"]
        if row["ratio"] in (0.5, 0.8)
    ]
    headings = ["removed", "fine-tuning", "difference in AP", *content["teacher"]]
    return markdown(headings, lines)


def frontier_table(content: dict[str, Any]) -> str:
    """Return what each size costs every task: a row per criterion and budget."""
    rows = []
    tasks = list(next(iter(content["curves"].values()))["original"])
    for importance, curve in content["curves"].items():
        for point in curve["points"]:
            changes = [point["metrics"][task] - curve["original"][task] for task in tasks]
            left = [f"{100 * point[f'{cost} left']:.1f} %" for cost in ("macs", "params")]
            rows.append([importance, *left, *(f"{change:+.1f}" for change in changes)])
    return markdown(["criterion", "MACs left", "parameters left", *tasks], rows)


def frontier_picture(content: dict[str, Any]) -> str:
    """Return the picture of the curves; :mod:`report` draws it."""
    names = " and ".join(content["curves"])
    return Picture(
        "frontier", f"Change of each task, in points, over multiply-adds left, by {names}"
    )(content)


PROMISES = Columns(
    (
        ("data", "{world}"),
        ("held-out samples", "{samples:,}"),
        ("wrong by the measured mean", "{wrong by the measured mean %:.1f} %"),
        *(
            column
            for bound, wrong in (
                ("betting", "wrong promises"),
                ("normal", "wrong, a normal bound"),
                ("Bernstein", "wrong, empirical Bernstein"),
            )
            for column in (
                (wrong, f"{{{bound}, wrong %:.1f}} %"),
                ("safe ones", f"{{{bound}, safe promised:.1f}} of {{safe models in order}}"),
            )
        ),
    )
)


def promise_bootstrap(content: dict[str, Any]) -> str:
    """Return how often promises by the bootstrap were wrong, in one line."""
    return "; ".join(
        f"{row['wrong %']:.1f} % from {row['images']:,} images" for row in content["bootstrap"]
    )


WEATHER = Columns(
    (
        ("", "{weather}"),
        ("mean AP from above", "{map_bev:.1f}"),
        ("mean AP in space", "{map_3d:.1f}"),
        ("cars from above", "{Car_bev_moderate:.1f}"),
        ("pedestrians from above", "{Pedestrian_bev_moderate:.1f}"),
        ("drivable IoU", "{iou:.1f}"),
    ),
    records="weather",
)

VIEWS: dict[str, View] = {
    "demo": demo_table,
    "criteria": criteria_table,
    "compensation": compensation_table,
    "compensation.criteria": compensation_criteria,
    "distillation": distillation_table,
    "distillation.plots": distillation_plots,
    "frontier": frontier_table,
    "frontier.picture": frontier_picture,
    "fusion": WEATHER,
    "fusion.recipe": fusion_recipe,
    "modality": modality_table,
    "modality.duels": modality_duels,
    "promise": PROMISES,
    "promise.bootstrap": promise_bootstrap,
}
"""What is made of ``results/NAME.json`` or ``results/NAME_VARIANT.json``."""
