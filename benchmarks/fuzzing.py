"""Random architectures of a wide grammar, each pruned, checked, distilled, saved and exported.

A net is a seed (:mod:`fuzzing_grammar`); what is done to it is in ``fuzzing_trial.py``. A run goes
on where it was stopped: what became of a net is appended to ``results/cells/fuzzing.jsonl``, unless
``--cells`` names another folder. Nets run in processes of their own, so that a crash costs one.

    python benchmarks/fuzzing.py --nets 5000
"""

from __future__ import annotations

import argparse
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fuzzing_trial
from cells import Cells
from children import Report, preload, run_all, run_forked
from fuzzing_trial import LIMIT, Record
from protocol import RESULTS, record, show

CHUNK = 20
"""Nets that a process tries one after the other."""

STAGES = ("prune", "oracles", "reload", "distil", "export", "given back")
LOST = ("wrong", "raw", "crash", "time-out")


def try_chunk(report: Report, name: str) -> None:
    """Try the nets whose seeds the name holds, and report all so far after each."""
    logging.disable()
    records = []
    for seed in map(int, name.split()):
        records.append(fuzzing_trial.try_net(seed))
        report({"records": records})


def tried(seeds: Sequence[int]) -> list[Record]:
    """Try nets in a process of their own; one that ends it costs its own record alone."""
    records: list[Record] = []
    while rest := seeds[len(records) :]:
        outcome = run_forked(try_chunk, " ".join(map(str, rest)), limit=LIMIT * len(rest))
        found = outcome.get("records", [])
        records += found
        if len(found) < len(rest):
            said = outcome.get("outcome", "the process ended")
            records.append({"seed": rest[len(found)], "crash": said})
    return records


def run(seeds: Iterable[int], cells: Cells, jobs: int) -> None:
    """Try the nets that have no record yet."""
    known = {cell["seed"] for cell in cells.all()}
    open_seeds = [seed for seed in seeds if seed not in known]
    preload("fuzzing_trial", "accelerate", "torch.export")
    chunks = [open_seeds[n : n + CHUNK] for n in range(0, len(open_seeds), CHUNK)]
    work = {str(chunk[0]): partial(_outcome, chunk) for chunk in chunks}
    for _, outcome in run_all("nets", work, jobs=jobs):
        for found in outcome["records"]:
            cells.append(found)


def _outcome(seeds: Sequence[int]) -> dict[str, Any]:
    return {"records": tried(seeds)}


def ended(cell: Record, stage: str) -> str:
    """Return how a stage of a net ended: ``ok``, ``refused``, ``wrong``, ``raw``, or empty."""
    return str(cell.get(stage, "")).partition(":")[0]


def lost(cell: Record) -> list[str]:
    """Return what went wrong with a net, in words."""
    said = [f"{stage}: {cell[stage]}" for stage in STAGES if ended(cell, stage) in LOST]
    return said + [f"{how}: {cell[how]}" for how in ("crash", "time-out") if how in cell]


def summary(cells: Sequence[Record]) -> dict[str, Any]:
    """Return the tables: by stage, by kind of block, reasons of refusals, and what was lost."""
    stages = [
        {"stage": stage, **{how: n for how, n in _counts(cells, stage).items() if how}}
        for stage in STAGES
    ]
    kinds = sorted({kind for cell in cells for kind in cell.get("kinds", ())})
    return {
        "nets": len(cells),
        "seeds": [min(cell["seed"] for cell in cells), max(cell["seed"] for cell in cells)],
        "compensated": sum(bool(c.get("compensated")) and ended(c, "prune") == "ok" for c in cells),
        "worst error": max(cell.get("error", 0.0) for cell in cells),
        "processor hours": round(sum(cell.get("seconds", 0.0) for cell in cells) / 3600, 2),
        "stages": stages,
        "kinds": [_kind(kind, cells) for kind in kinds],
        "refusals": list(_refusals(cells)),
        "frozen": dict(_frozen(cells).most_common()),
        "lost": [{"seed": c["seed"], "what": what} for c in cells for what in lost(c)],
    }


def _counts(cells: Sequence[Record], stage: str) -> Counter[str]:
    found = Counter(ended(cell, stage) for cell in cells)
    return Counter({how: found[how] for how in ("ok", "refused", "wrong", "raw")})


def _kind(kind: str, cells: Sequence[Record]) -> dict[str, Any]:
    having = [cell for cell in cells if kind in cell.get("kinds", ())]
    frozen = sum(_frozen(having).values())
    free = sum(cell.get("free", 0) for cell in having)
    return {
        "kind": kind,
        "tried": len(having),
        "pruned": sum(ended(cell, "prune") == "ok" for cell in having),
        "refused": sum(ended(cell, "prune") == "refused" for cell in having),
        "lost": sum(bool(lost(cell)) for cell in having),
        "frozen %": round(100 * frozen / max(1, frozen + free), 1),
    }


def _frozen(cells: Iterable[Record]) -> Counter[str]:
    found: Counter[str] = Counter()
    for cell in cells:
        found.update(cell.get("frozen", {}))
    return found


def _refusals(cells: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """Yield reasons, the most frequent first: the error, and its words up to the first stop."""
    found: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        for stage in STAGES:
            if ended(cell, stage) == "refused":
                words = re.sub(r"`[^`]*`", "`…`", cell[stage].removeprefix("refused: "))
                found[stage, words.partition(". ")[0][:160]] += 1
    for (stage, reason), n in found.most_common():
        yield {"stage": stage, "reason": reason, "nets": n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first net")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=RESULTS / "cells")
    args = parser.parse_args()
    cells = Cells("fuzzing", args.cells)
    run(range(args.first, args.first + args.nets), cells, args.jobs)
    found = summary(cells.all())
    show("Stages", found["stages"])
    show("Kinds of blocks", found["kinds"])
    for one in found["lost"]:
        print(f"seed {one['seed']}: {one['what']}")
    record("fuzzing", found)


if __name__ == "__main__":
    main()
