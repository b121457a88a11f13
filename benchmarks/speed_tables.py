"""Tables of where time goes, in deployment and while pruning, for ``report.py``."""

from __future__ import annotations

from typing import Any

from markdown_tables import Picture, View, first_word, markdown


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


def exponents(content: dict[str, Any]) -> str:
    """Return the exponent of every stage: a row per family."""
    rows = content["rows"]
    figures = [name for name in rows[0] if name not in ("family", "over")]
    lines = [
        [row["family"], row["over"]]
        + ["–" if row[name] is None else f"{row[name]:.2f}" for name in figures]
        for row in rows
    ]
    return markdown(["family", "over", *figures], lines)


def largest(content: dict[str, Any]) -> str:
    """Return what the largest model of every family takes, the peers beside it."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in content["rows"]):
        own = [p for p in content["points"] if p["family"] == family]
        ours = [p for p in own if p["library"] == "taskprune" and "stages" in p]
        most = max(ours, key=lambda p: (p["parameters"], p["tasks"]))
        stages = most["stages"]
        plain = sum(stages[s] for s in ("trace", "couple", "solve", "rewrite"))
        cells = [family, f"{most['parameters'] / 1e6:,.0f} M", str(most["tasks"])]
        cells += [f"{plain:.1f} s", *(f"{stages[s]:.1f} s" for s in ("score", "verify"))]
        cells += [f"{stages['compensate']:.1f} s", f"{most['bytes'] / 2**30:.1f} GB"]
        for peer in ("torch-pruning", "torch-kirigami"):
            found = [p for p in own if p["library"] == peer and p["size"] == most["size"]]
            said = found[0] if found else {"outcome": "–"}
            seconds = said.get("seconds")
            cells.append(first_word(said) if seconds is None else f"{seconds:.1f} s")
        lines.append(cells)
    headings = ["family", "parameters", "tasks", "trace, couple, solve, rewrite", "score", "verify"]
    headings += ["compensate", "memory", "Torch-Pruning", "torch-kirigami"]
    return markdown(headings, lines)


VIEWS: dict[str, View] = {
    "scaling": largest,
    "scaling.exponents": exponents,
    "scaling.picture": Picture(
        "scaling", "Processor seconds of every stage over parameters and tasks"
    ),
    "speed": speed_table,
    "speed.flat": speed_flat,
    "speed.load": speed_under_load,
    "speed.stages": speed_stages,
}
"""What is made of ``results/NAME.json``."""
