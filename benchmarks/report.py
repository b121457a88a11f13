"""Write the tables and pictures of the pages from the files in benchmarks/results.

    python benchmarks/report.py

Nobody types a number: text between ``<!-- results: NAME -->`` and ``<!-- end -->`` is replaced by
what is made of ``results/NAME.json``, or says that it is not there yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from robustness_tables import (
    fuzzing_kinds,
    fuzzing_lost,
    fuzzing_reasons,
    fuzzing_stages,
    fuzzing_summary,
)

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SPEED_PICTURE = ROOT / "docs" / "images" / "speed.png"
FRONTIER_PICTURE = ROOT / "docs" / "images" / "frontier.png"
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(\n?<!-- end -->)", re.DOTALL)

HEADLINES = {"detection": ("map50", "recall"), "drivable": ("miou",), "lane": ("iou", "accuracy")}
LABELS = {
    "map50": "mAP50",
    "recall": "recall",
    "miou": "mIoU",
    "iou": "IoU",
    "accuracy": "accuracy",
}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    lines = [headings, [":--"] + ["--:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
            cells.append(_with_spread((row[f"worst {when}"], row[f"worst {when} ±"]), "{:+.1f}"))
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
        worst = _with_spread((row["worst task"], row["worst task ±"]), "{:+.1f}")
        rows.append([row["network"], row["budget"], row["way"], str(row["seeds"]), worst, tasks])
    return markdown(["network", "budget", "way", "seeds", "worst task", "each task"], rows)


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
                    _with_spread([row["worst task"], row["worst task ±"]], "{:+.1f}")
                    if (row := found.get((*column, criterion)))
                    else ""
                    for column in columns
                ),
            ]
            for criterion in by_way.values()
        ],
    )


def tracing_table(content: dict[str, Any]) -> str:
    """Return seconds and memory per model, the peers' seconds beside them."""
    peers = ("torch-pruning", "torch-kirigami")
    rows = []
    for row in content["rows"]:
        ours = row["taskprune"]
        cells = [f"{ours[key]:.2f} s" if key in ours else "–" for key in ("trace", "couple")]
        cells.append(f"{ours['megabytes']:.0f} MB" if "megabytes" in ours else "–")
        for peer in (row[name] for name in peers):
            if "seconds" not in peer:
                cells.append(peer["outcome"].partition(":")[0])
            else:
                ratio = f" ({peer['seconds'] / ours['seconds']:.1f} ×)" if "seconds" in ours else ""
                cells.append(f"{peer['seconds']:.2f} s{ratio}")
        rows.append([row["name"], *cells])
    return markdown(["", "trace", "couple", "memory", "Torch-Pruning", "torch-kirigami"], rows)


def footprint_table(content: dict[str, Any]) -> str:
    """Return seconds and memory of pruning per model, verified or not, Torch-Pruning's beside."""
    rows = []
    for row in content["rows"]:
        for way in ("taskprune", "taskprune, unverified", "torch-pruning"):
            found = row[way]
            cells = [found["outcome"].partition(":")[0]]
            if "bytes" in found:
                passes = found["seconds"] / found["forward"]
                models = found["bytes"] / found["weights"]
                cells += [f"{found['seconds']:.1f} s", f"{passes:.1f} ×"]
                cells += [f"{found['bytes'] / 2**30:.2f} GB", f"{models:.2f} ×"]
            rows.append([row["name"], way, *cells, *["–"] * (5 - len(cells))])
    headings = ["", "by", "outcome", "time", "of its forward pass", "memory", "of its weights"]
    return markdown(headings, rows)


def footprint_imports(content: dict[str, Any]) -> str:
    """Return how long importing takes where torch is there already."""
    return ", ".join(f"`{name}` {seconds:.2f} s" for name, seconds in content["imports"].items())


def coverage_table(content: dict[str, Any]) -> str:
    """Return what became of each stock architecture, and the counts of all."""
    rows = []
    for row in content["rows"]:
        peer = row["peer"]
        cells = [f"{row['seconds']:.2f} s", f"{100 * row['stuck']:.1f} %"] if "stuck" in row else []
        for ratio in ("0.3", "0.5"):
            removed, error = row.get(f"removed {ratio}"), row.get(f"error {ratio}")
            cells.append("–" if removed is None else f"{100 * removed:.1f} %")
            cells.append(row["outcome"].partition(":")[0] if error is None else f"{error:.0e}")
        verdict = peer["outcome"].partition(":")[0]
        if verdict == "runs":
            verdict = "keeps shapes" if peer["shapes"] else "cuts the outputs"
            verdict += {True: ", exact", False: ", wrong", None: ""}[peer["exact"]]
        rows.append([row["name"], *["–"] * (6 - len(cells)), *cells, verdict])
    headings = ["", "trace + couple", "stuck", "−30 %", "error", "−50 %", "error", "Torch-Pruning"]
    return markdown(headings, rows)


def coverage_summary(content: dict[str, Any]) -> str:
    """Return the counts over all architectures; verification covers runs and shapes alike."""
    counts = content["summary"]
    done = str(counts["pruned to the asked ratio, exactly"])
    peer = "Torch-Pruning"
    rows = [
        ["runs after pruning", done, str(counts[f"{peer} runs"])],
        ["outputs keep their shapes", done, str(counts[f"{peer} keeps shapes"])],
        ["what remains is exact", done, str(counts[f"{peer} exact"])],
        ["ran out of time", "0", str(counts[f"{peer} time-outs"])],
        ["channels without a rule", f"{100 * counts['frozen by ignorance']:.2f} %", ""],
    ]
    headings = [f"of {counts['models']} architectures", "taskprune", f"{peer}, unpatched"]
    return markdown(headings, rows)


def distillation_table(content: dict[str, Any]) -> str:
    """Return what each way of fine-tuning brings back, one row per set of images, arm and steps."""
    rows = content["arms"]
    lines = []
    for row in rows:
        cells = [row["on"], row["arm"], str(row["steps"] or "")]
        for task, change in row["change"].items():
            cells.append(_with_spread(change, "{:+.1f}"))
            cells.append(_with_spread(row["recovered"].get(task, (None, None)), "{:.0f}"))
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
    """Return a picture per set of images; :func:`main` draws them."""
    return "\n\n".join(
        f"![Share of each task's drop that comes back, {on}]({path.relative_to(ROOT / 'docs')})"
        for on, path in plots(content).items()
    )


def plots(content: dict[str, Any]) -> dict[str, Path]:
    """Return where the picture of each set of images is."""
    images = dict.fromkeys(row["on"] for row in content["arms"])
    return {on: ROOT / "docs" / "images" / f"distillation_{on}.png" for on in images}


def overhead_table(content: dict[str, Any]) -> str:
    """Return the times of a step in the trainer and in the bare loop, and their ratio."""
    head = ["", "trainer", "bare loop", "ratio", "half of the steps"]
    rows = [
        [
            f"{row['clock']} time of a step",
            f"{row['trainer ms']:.0f} ms",
            f"{row['bare loop ms']:.0f} ms",
            f"{row['ratio']:.2f} ± {row['standard error']:.2f}",
            f"{row['lower quartile']:.2f} to {row['upper quartile']:.2f}",
        ]
        for row in content["rows"]
    ]
    return markdown(head, rows)


def _with_spread(figure: Sequence[float | None], form: str) -> str:
    mean, spread = figure
    if mean is None:
        return ""
    return form.format(mean) + (f" ± {form.format(spread).lstrip('+')}" if spread else "")


def fusion_table(content: dict[str, Any]) -> str:
    """Return what the trained fusion net reaches in each weather."""
    columns = {
        "map_bev": "mean AP from above",
        "map_3d": "mean AP in space",
        "Car_bev_moderate": "cars from above",
        "Pedestrian_bev_moderate": "pedestrians from above",
        "iou": "drivable IoU",
    }
    rows = [[row["weather"], *(f"{row[key]:.1f}" for key in columns)] for row in content["weather"]]
    return markdown(["", *columns.values()], rows)


def fusion_recipe(content: dict[str, Any]) -> str:
    """Return how long the recipe takes, in one line."""
    recipe = content["recipe"]
    return (
        f"{content['params'] / 1e6:.2f} M parameters, {content['macs'] / 1e9:.2f} G multiply-adds "
        f"a frame; {recipe['steps']} steps of {recipe['batch_size']} scenes, none seen twice, in "
        f"{content['cpu_minutes']:.0f} minutes of processor time; judged on "
        f"{content['n_validation']} unseen scenes."
    )


def latency_table(content: dict[str, Any]) -> str:
    """Return what each budget removes from the `l` net, and how much faster that makes it."""
    rows = [
        [
            row["model"],
            f"{row['params removed %']:.1f} %",
            f"{row['macs removed %']:.1f} %",
            f"{row['median ms']:.0f} ms ({row['lower']:.0f} to {row['upper']:.0f})",
            f"{row['times faster']:.2f} ×",
        ]
        for row in content["rows"]
    ]
    head = ["budget", "parameters removed", "MACs removed", "latency, median (quartiles)", "faster"]
    return markdown(head, rows)


def latency_predictions(content: dict[str, Any]) -> str:
    """Return predicted beside measured latencies: a row per net and budget."""
    rows = [
        [
            row["net"],
            row["runtime"],
            row["budget"],
            f"{row['predicted ms']:.1f} ms",
            f"{row['measured ms']:.1f} ms ({row['lowest']:.1f} to {row['highest']:.1f})",
            f"{row['measured / predicted']:.2f}",
        ]
        for row in content["predictions"]
    ]
    head = [
        "net",
        "runtime",
        "budget",
        "predicted",
        "measured, median (rounds)",
        "measured / predicted",
    ]
    return markdown(head, rows)


def speed_table(content: dict[str, Any]) -> str:
    """Return times of one image on one thread: a row per network and student, by runtime."""
    rows = [r for r in content["rows"] if (r["batch"], r["threads"]) == (1, 1)]
    runtimes = list(dict.fromkeys(r["runtime"] for r in rows))
    lines = []
    for net, model in dict.fromkeys((r["net"], r["model"]) for r in rows):
        own = {r["runtime"]: r for r in rows if (r["net"], r["model"]) == (net, model)}
        first = next(iter(own.values()))
        lines.append([net, model, f"{100 * first['MACs left']:.0f} %"])
        lines[-1] += [
            f"{own[r]['median ms']:.1f} ms, {own[r]['times faster']:.2f} ×" if r in own else "–"
            for r in runtimes
        ]
    return markdown(["net", "model", "MACs left", *runtimes], lines)


def speed_under_load(content: dict[str, Any]) -> str:
    """Return how much faster students are with more images and threads, by runtime."""
    rows = [r for r in content["rows"] if r["model"] != "original" and r["runtime"] != "compiled"]
    cases = sorted({(r["batch"], r["threads"]) for r in rows})
    lines = []
    for net, model, runtime in dict.fromkeys((r["net"], r["model"], r["runtime"]) for r in rows):
        own = {
            (r["batch"], r["threads"]): r["times faster"]
            for r in rows
            if (r["net"], r["model"], r["runtime"]) == (net, model, runtime)
        }
        cells = [f"{own[case]:.2f} ×" if case in own else "–" for case in cases]
        lines.append([net, model, runtime, *cells])
    head = [f"{b} image{'s' * (b > 1)}, {t} thread{'s' * (t > 1)}" for b, t in cases]
    return markdown(["net", "model", "runtime", *head], lines)


def speed_stages(content: dict[str, Any]) -> str:
    """Return multiply-adds and times that are left of each stage of the bundled net."""
    lines = []
    for cell in content["stages"]:
        macs, ms = cell["macs"], cell["ms"]
        for stage in macs["original"]:
            line = [cell["net"], stage, f"{ms['original'][stage]:.1f} ms"]
            for student in [m for m in macs if m != "original"]:
                left = macs[student][stage] / macs["original"][stage]
                time = ms[student][stage] / ms["original"][stage]
                line.append(f"{100 * left:.0f} % / {100 * time:.0f} %")
            lines.append(line)
    if not lines:
        return "*Not measured yet.*"
    students = [m for m in content["stages"][0]["macs"] if m != "original"]
    return markdown(["net", "stage", "original", *students], lines)


def speed_flat(content: dict[str, Any]) -> str:
    """Return the groups that buy no time."""
    lines = [
        [
            cell["net"],
            str(cell["groups"]),
            str(len(cell["flat"])),
            ", ".join(f"`{name}`" for name in cell["flat"]) or "–",
        ]
        for cell in content["groups"]
    ]
    return markdown(["net", "groups", "buy no time", "which"], lines)


def scoring_table(content: dict[str, Any]) -> str:
    """Return the time of scoring over that of its gradients alone."""
    rows = [
        [row["criterion"], f"{row['ratio']:.2f}", f"{row['lowest']:.2f} to {row['highest']:.2f}"]
        for row in content["rows"]
    ]
    return markdown(["criterion", "scoring over a bare loop", "lowest to highest"], rows)


def guarantees_table(content: dict[str, Any]) -> str:
    """Return what is promised, what was measured of it, and what was asked for."""
    rows = [
        [row["promise"], row["measured"], row["asked"], "yes" if row["holds"] else "**no**"]
        for row in content["rows"]
    ]
    return markdown(["promise", "measured", "asked", "holds"], rows)


def modality_table(content: dict[str, Any]) -> str:
    """Return AP on the fusion net before and after fine-tuning: a row per ratio and criterion."""
    whole = content["teacher"]
    figures = [(when, condition) for when in ("before", "after") for condition in whole]
    unpruned = [f"{whole[condition]['AP']:.1f}" for _, condition in figures]
    lines = [["", "unpruned", "", "", *unpruned, f"{whole['clean']['IoU']:.1f}"]]
    for row in content["rows"]:
        kept = ", ".join(f"{label} {100 * share:.0f}" for label, share in row["kept"].items())
        cells = [f"{100 * row['ratio']:.0f} %", row["criterion"]]
        cells += [f"{100 * row['removed']['macs']:.0f} %", kept]
        for when, condition in figures:
            judged = row[when].get(condition)
            cells.append(_with_spread(judged["AP"], "{:.1f}") if judged else "–")
        ground = (row["after"] or row["before"])["clean"]["IoU"]
        lines.append([*cells, _with_spread(ground, "{:.1f}")])
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
        + [_with_spread(row[condition], "{:+.1f}") for condition in content["teacher"]]
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
    """Return the picture of the curves; :func:`draw` draws it."""
    names = " and ".join(content["curves"])
    place = FRONTIER_PICTURE.relative_to(ROOT / "docs")
    return f"![Change of each task, in points, over multiply-adds left, by {names}]({place})"


def promise_table(content: dict[str, Any]) -> str:
    """Return how often promises were wrong, and how many safe models were promised."""
    rows = []
    for row in content["rows"]:
        cells = [
            row["world"],
            f"{row['samples']:,}",
            f"{row['wrong by the measured mean %']:.1f} %",
        ]
        for bound in ("betting", "normal", "Bernstein"):
            safe = f"{row[f'{bound}, safe promised']:.1f} of {row['safe models in order']}"
            cells += [f"{row[f'{bound}, wrong %']:.1f} %", safe]
        rows.append(cells)
    headings = [
        "data",
        "held-out samples",
        "wrong by the measured mean",
        "wrong promises",
        "safe ones",
    ]
    for other in ("a normal bound", "empirical Bernstein"):
        headings += [f"wrong, {other}", "safe ones"]
    return markdown(headings, rows)


def promise_bootstrap(content: dict[str, Any]) -> str:
    """Return how often promises by the bootstrap were wrong, in one line."""
    return "; ".join(
        f"{row['wrong %']:.1f} % from {row['images']:,} images" for row in content["bootstrap"]
    )


VIEWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "demo": demo_table,
    "criteria": criteria_table,
    "compensation": compensation_table,
    "compensation.criteria": compensation_criteria,
    "coverage": coverage_table,
    "coverage.summary": coverage_summary,
    "tracing": tracing_table,
    "distillation": distillation_table,
    "footprint": footprint_table,
    "footprint.imports": footprint_imports,
    "frontier": frontier_table,
    "frontier.picture": frontier_picture,
    "fusion": fusion_table,
    "fusion.recipe": fusion_recipe,
    "guarantees": guarantees_table,
    "latency": latency_table,
    "latency.predictions": latency_predictions,
    "speed": speed_table,
    "speed.load": speed_under_load,
    "speed.stages": speed_stages,
    "speed.flat": speed_flat,
    "modality": modality_table,
    "modality.duels": modality_duels,
    "promise": promise_table,
    "promise.bootstrap": promise_bootstrap,
    "distillation.plots": distillation_plots,
    "distillation_overhead": overhead_table,
    "scoring": scoring_table,
    "fuzzing": fuzzing_summary,
    "fuzzing.stages": partial(fuzzing_stages, markdown=markdown),
    "fuzzing.kinds": partial(fuzzing_kinds, markdown=markdown),
    "fuzzing.reasons": partial(fuzzing_reasons, markdown=markdown),
    "fuzzing.lost": partial(fuzzing_lost, markdown=markdown),
}
"""What is made of ``results/NAME.json`` or ``results/NAME_VARIANT.json``."""


def table(name: str) -> str:
    """Return what a page shows of one results file: ``NAME``, ``NAME_VARIANT`` or ``NAME.VIEW``."""
    file, _, view = name.partition(".")
    path = RESULTS / f"{file}.json"
    if not path.exists():
        return "*Not measured yet.*"
    content = json.loads(path.read_text(encoding="utf-8"))
    kind = file if file in VIEWS else file.partition("_")[0]
    return VIEWS[f"{kind}.{view}" if view else kind](content)


def rendered(text: str) -> str:
    """Return a page with all marked parts made anew."""
    return MARKED.sub(lambda match: match[1] + table(match[2]) + "\n<!-- end -->", text)


def draw() -> None:
    """Draw the pictures of the pages."""
    pictures = {
        "distillation": _draw_distillation,
        "frontier": _draw_frontier,
        "speed": _draw_speed,
    }
    for name, draw_of in pictures.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            draw_of(json.loads(path.read_text(encoding="utf-8")))


def _draw_distillation(content: dict[str, Any]) -> None:
    from distillation_plot import draw as draw_recovered  # Matplotlib, an extra

    for on, picture in plots(content).items():
        draw_recovered([row for row in content["arms"] if row["on"] == on], picture)


def _draw_frontier(content: dict[str, Any]) -> None:
    from frontier_plot import draw as draw_curves

    draw_curves(content, FRONTIER_PICTURE)


def _draw_speed(content: dict[str, Any]) -> None:
    from speed_plot import draw as draw_speed

    draw_speed(content, SPEED_PICTURE)


def main() -> None:
    draw()
    for page in PAGES:
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
