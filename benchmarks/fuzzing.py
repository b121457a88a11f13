"""Random architectures of a wide grammar, each pruned, checked, distilled, saved and exported.

A net is a seed (:mod:`fuzzing_grammar`); what is done to it is in ``fuzzing_trial.py``. Nets are
tried in blocks of 500 seeds, and in processes of their own; a crash costs one net. What became of a
block is appended to ``results/cells/fuzzing.jsonl``, unless ``--cells`` names another folder:
counts, and every net that was lost. A run goes on where it was stopped.

    python benchmarks/fuzzing.py --blocks 10
"""

from __future__ import annotations

import argparse
import gc
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fuzzing_trial
from cells import Cells
from children import Report, preload, run_all, run_forked
from fuzzing_trial import LIMIT, Record
from protocol import RESULTS, record, show

BLOCK = 500
"""Nets of a cell."""

CHUNK = 20
"""Nets that a process tries one after the other."""

LATE_IMPORTS = (
    "accelerate",
    "networkx",
    "scipy.linalg",
    "scipy.sparse.csgraph",
    "taskprune.allocation",
    "taskprune.front.distilling",
    "taskprune.front.pruning",
    "taskprune.rewrite.checkpoint",
    "torch._dynamo",
    "torch.export._trace",
)
"""What is imported where it is needed first: in every process, which takes as long as ten nets."""

STAGES = ("prune", "oracles", "reload", "distil", "export", "given back")
ENDS = ("ok", "refused", "wrong", "raw")
LOST = ("wrong", "raw", "crash", "time-out")


def try_nets(report: Report, name: str) -> None:
    """Try the nets whose seeds the name holds, and report all so far after each."""
    logging.disable()
    gc.disable()  # twenty nets fit into memory
    records = []
    for seed in map(int, name.split()):
        records.append(fuzzing_trial.try_net(seed))
        report({"records": records})


def tried(seeds: Sequence[int]) -> list[Record]:
    """Try nets in processes of their own; one that ends it costs its own record alone."""
    records: list[Record] = []
    while rest := seeds[len(records) :][:CHUNK]:
        outcome = run_forked(try_nets, " ".join(map(str, rest)), limit=LIMIT * len(rest))
        found = outcome.get("records", [])
        records += found
        if len(found) < len(rest):
            said = outcome.get("outcome", "the process ended")
            records.append({"seed": rest[len(found)], "crash": said})
    return records


def run(blocks: Iterable[int], cells: Cells, jobs: int) -> None:
    """Try the blocks that have no cell yet."""
    known = {cell["block"] for cell in cells.all()}
    preload("fuzzing_trial", *LATE_IMPORTS)
    work = {str(block): partial(_tried_block, block) for block in blocks if block not in known}
    for _, outcome in run_all("blocks of nets", work, jobs=jobs):
        cells.append(outcome["cell"])


def _tried_block(block: int) -> dict[str, Any]:
    seeds = range(block * BLOCK, (block + 1) * BLOCK)
    return {"cell": {"block": block, **counted(tried(seeds))}}


def ended(net: Record, stage: str) -> str:
    """Return how a stage of a net ended: ``ok``, ``refused``, ``wrong``, ``raw``, or empty."""
    return str(net.get(stage, "")).partition(":")[0]


def lost(net: Record) -> list[str]:
    """Return what went wrong with a net, in words."""
    said = [f"{stage}: {net[stage]}" for stage in STAGES if ended(net, stage) in LOST]
    return said + [f"{how}: {net[how]}" for how in ("crash", "time-out") if how in net]


def counted(nets: Sequence[Record]) -> Record:
    """Return what became of some nets, so that two of these add up."""
    counts: Counter[str] = Counter()
    for net in nets:
        counts.update(_counts(net))
    return {
        "nets": len(nets),
        "seconds": round(sum(net.get("seconds", 0.0) for net in nets), 1),
        "worst error": max(net.get("error", 0.0) for net in nets),
        "counts": dict(sorted(counts.items())),
        "lost": [{"seed": net["seed"], "what": what} for net in nets for what in lost(net)],
    }


def _counts(net: Record) -> Counter[str]:
    """Return how often each thing was seen of one net; the names are paths into tables."""
    pruned = ended(net, "prune")
    counts = Counter({f"stage/{stage}/{ended(net, stage)}": 1 for stage in STAGES if stage in net})
    counts["compensated"] += bool(net.get("compensated")) and pruned == "ok"
    for stage in STAGES:
        if ended(net, stage) == "refused":
            words = re.sub(r"`[^`]*`", "`…`", net[stage].removeprefix("refused: "))
            counts[f"refusal/{stage}/{words.partition('. ')[0][:160]}"] += 1
    frozen = net.get("frozen", {})
    counts.update({f"frozen/{reason}": n for reason, n in frozen.items()})
    for kind in set(net.get("kinds", ())):
        own = {"tried": 1, "pruned": pruned == "ok", "refused": pruned == "refused"}
        own |= {"lost": bool(lost(net)), "frozen": sum(frozen.values()), "free": net.get("free", 0)}
        counts.update({f"kind/{kind}/{what}": int(n) for what, n in own.items()})
    return +counts


def summary(cells: Sequence[Record]) -> dict[str, Any]:
    """Return the tables: by stage, by kind of block, reasons of refusals, and what was lost."""
    counts: Counter[str] = Counter()
    for cell in cells:
        counts.update(cell["counts"])
    refusals = (name.partition("/") for name, _ in _below(counts, "refusal").most_common())
    return {
        "nets": sum(cell["nets"] for cell in cells),
        "seeds": [
            min(cell["block"] for cell in cells) * BLOCK,
            (max(cell["block"] for cell in cells) + 1) * BLOCK - 1,
        ],
        "compensated": counts["compensated"],
        "worst error": max(cell["worst error"] for cell in cells),
        "processor hours": round(sum(cell["seconds"] for cell in cells) / 3600, 2),
        "stages": [
            {"stage": stage, **{how: counts[f"stage/{stage}/{how}"] for how in ENDS}}
            for stage in STAGES
        ],
        "kinds": [
            _kind(kind, _below(counts, f"kind/{kind}"))
            for kind in sorted({name.partition("/")[0] for name in _below(counts, "kind")})
        ],
        "refusals": [
            {"stage": stage, "reason": reason, "nets": counts[f"refusal/{stage}/{reason}"]}
            for stage, _, reason in refusals
        ],
        "frozen": dict(_below(counts, "frozen").most_common()),
        "lost": [one for cell in cells for one in cell["lost"]],
    }


def _below(counts: Counter[str], path: str) -> Counter[str]:
    """Return the counts below a path, by the rest of their names."""
    lead = f"{path}/"
    return Counter({n.removeprefix(lead): c for n, c in counts.items() if n.startswith(lead)})


def _kind(kind: str, own: Counter[str]) -> dict[str, Any]:
    every = own["frozen"] + own["free"]
    return {
        "kind": kind,
        **{what: own[what] for what in ("tried", "pruned", "refused", "lost")},
        "frozen %": round(100 * own["frozen"] / max(1, every), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10, help="of 500 nets each")
    parser.add_argument("--first", type=int, default=0, help="the first block")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=RESULTS / "cells")
    args = parser.parse_args()
    cells = Cells("fuzzing", args.cells)
    run(range(args.first, args.first + args.blocks), cells, args.jobs)
    found = summary(cells.all())
    show("Stages", found["stages"])
    show("Kinds of blocks", found["kinds"])
    for one in found["lost"]:
        print(f"seed {one['seed']}: {one['what']}")
    record("fuzzing", found)


if __name__ == "__main__":
    main()
