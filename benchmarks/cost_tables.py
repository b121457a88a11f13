"""Tables of what tracing, scoring, pruning and the pruned model take, for ``report.py``."""

from __future__ import annotations

from typing import Any

from markdown_tables import Columns, View, first_word, markdown


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
                cells.append(first_word(peer))
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
            cells = [first_word(found)]
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
            cells.append(first_word(row) if error is None else f"{error:.0e}")
        verdict = first_word(peer)
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


def guarantees_table(content: dict[str, Any]) -> str:
    """Return what is promised, what was measured of it, and what was asked for."""
    rows = [
        [row["promise"], row["measured"], row["asked"], "yes" if row["holds"] else "**no**"]
        for row in content["rows"]
    ]
    return markdown(["promise", "measured", "asked", "holds"], rows)


STEP = Columns(
    (
        ("", "{clock} time of a step"),
        ("trainer", "{trainer ms:.0f} ms"),
        ("bare loop", "{bare loop ms:.0f} ms"),
        ("ratio", "{ratio:.2f} ± {standard error:.2f}"),
        ("half of the steps", "{lower quartile:.2f} to {upper quartile:.2f}"),
    )
)
LATENCY = Columns(
    (
        ("budget", "{model}"),
        ("parameters removed", "{params removed %:.1f} %"),
        ("MACs removed", "{macs removed %:.1f} %"),
        ("latency, median (quartiles)", "{median ms:.0f} ms ({lower:.0f} to {upper:.0f})"),
        ("faster", "{times faster:.2f} ×"),
    )
)
PREDICTED_LATENCY = Columns(
    (
        ("net", "{net}"),
        ("runtime", "{runtime}"),
        ("budget", "{budget}"),
        ("predicted", "{predicted ms:.1f} ms"),
        ("measured, median (rounds)", "{measured ms:.1f} ms ({lowest:.1f} to {highest:.1f})"),
        ("measured / predicted", "{measured / predicted:.2f}"),
    ),
    records="predictions",
)
SCORING = Columns(
    (
        ("criterion", "{criterion}"),
        ("scoring over a bare loop", "{ratio:.2f}"),
        ("lowest to highest", "{lowest:.2f} to {highest:.2f}"),
    )
)


def scoring_compensation(content: dict[str, Any]) -> str:
    """Return in a sentence what compensation takes."""
    found = content["compensation"]
    return (
        f"Compensation takes {found['ratio']:.2f} times what scoring the same batches takes by the "
        f"default criterion ({found['lowest']:.2f} to {found['highest']:.2f}, asked: at most 1)."
    )


VIEWS: dict[str, View] = {
    "coverage": coverage_table,
    "coverage.summary": coverage_summary,
    "distillation_overhead": STEP,
    "footprint": footprint_table,
    "footprint.imports": footprint_imports,
    "guarantees": guarantees_table,
    "latency": LATENCY,
    "latency.predictions": PREDICTED_LATENCY,
    "scoring": SCORING,
    "scoring.compensation": scoring_compensation,
    "tracing": tracing_table,
}
"""What is made of ``results/NAME.json``."""
