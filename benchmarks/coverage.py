"""Every stock architecture, as it comes: what of it can be pruned, and is the result exact?

    python benchmarks/coverage.py [--only PATTERN] [--jobs 2] [--limit 120] [--peer-limit 60]

Models are built from their configurations with random weights and norm statistics; nobody prepares
them, nothing is configured. For each, in a process of its own on one thread:

*taskprune* traces and couples, removes 30 % and 50 % of the parameters by weight magnitude under
the default safety limits, compares the pruned model with the masked original (largest error over
the outputs, relative to their size; where the code computes a statistic of its own across
channels, those channels are permuted in the original instead) and permutes all groups at once.
Channels are *free* if they can go, *stuck* if they cannot because of how the code is written (a
size that it spells out, an attribute that does not follow, an operator without a rule), *unknown*
if it is the latter. Channels that must stay by nature (inputs, outputs, rows of embeddings) count
nowhere. Time is processor time of one thread.

*Torch-Pruning* prunes the same model to 50 % of its channels with its magnitude pruner, unpatched:
no layers to ignore are named, the number of heads is given where a module has ``.qkv``. Its result
*runs* if a forward passes, *keeps shapes* if the outputs have theirs, and is *exact* if for every
group that it prunes, zeroing the channels that it removes (weights, biases, norms) and removing
them give the same outputs; a dash where a norm across channels makes the two differ by nature, or
where the comparison, which runs the model twice a group, did not end in time.

Limits are processor time too, so that a busy machine costs no model its row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from architectures import architectures
from children import Outcome, preload, run_all, run_forked
from coverage_row import RATIOS, our_result, peer_result
from protocol import RESULTS, record, show

SLACK = 0.005
"""By how much less than asked may go for a row to count as pruned: nothing, but for rounding."""


def is_done(row: Outcome) -> bool:
    """Whether the model was pruned to every asked ratio, exactly."""
    return row["outcome"] == "ok" and all(row[f"removed {r:g}"] >= r - SLACK for r in RATIOS)


def summary(rows: Sequence[Outcome]) -> Outcome:
    """Return the counts of the last line."""
    peers = [row["peer"] for row in rows]
    free = sum(row.get("channels", 0) for row in rows)
    unknown = sum(row.get("unknown channels", 0) for row in rows)
    return {
        "models": len(rows),
        "pruned to the asked ratio, exactly": sum(is_done(row) for row in rows),
        "frozen by ignorance": unknown / max(1, free + unknown),
        "Torch-Pruning runs": sum(peer["outcome"] == "runs" for peer in peers),
        "Torch-Pruning keeps shapes": sum(bool(peer.get("shapes")) for peer in peers),
        "Torch-Pruning exact": sum(peer.get("exact") is True for peer in peers),
        "Torch-Pruning runs but is wrong": sum(
            peer["outcome"] == "runs" and peer.get("exact") is False for peer in peers
        ),
        "Torch-Pruning time-outs": sum(peer["outcome"] == "time-out" for peer in peers),
    }


def shown(row: Outcome) -> dict[str, Any]:
    """Return a row as the table on the screen has it."""
    peer = row["peer"]
    cells: dict[str, Any] = {
        "model": row["name"],
        "seconds": row.get("seconds"),
        "in reach": _percent(row.get("params in reach")),
        "stuck": _percent(row.get("stuck")),
        "unknown": _percent(row.get("unknown")),
    }
    for ratio in RATIOS:
        cells[f"−{ratio:.0%}"] = _percent(row.get(f"removed {ratio:g}"))
        cells[f"error {ratio:g}"] = _small(row.get(f"error {ratio:g}"))
    cells["permuted"] = _small(row.get("permuted"))
    cells["Torch-Pruning"] = peer["outcome"].partition(":")[0]
    cells["shapes"] = peer.get("shapes")
    cells["exact"] = peer.get("exact")
    if row["outcome"] != "ok":
        cells["model"] += f" [{row['outcome'].partition(':')[0]}]"
    return cells


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _small(value: float | None) -> str | None:
    return None if value is None else f"{value:.0e}"


def both(name: str, limit: float, peer_limit: float) -> Outcome:
    """Measure one architecture with both libraries, in two processes."""
    ours = run_forked(our_result, name, limit=limit)
    peer = run_forked(peer_result, name, limit=peer_limit)
    return {"name": name, **ours, "peer": peer}


def known_rows() -> dict[str, Outcome]:
    """Return the rows of earlier runs."""
    path = RESULTS / "coverage.json"
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: row for row in content["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="shell pattern of names, such as 'timm/*'")
    parser.add_argument("--jobs", type=int, default=2, help="models at the same time")
    parser.add_argument("--limit", type=float, default=120, help="seconds for taskprune")
    parser.add_argument("--peer-limit", type=float, default=60, help="seconds for Torch-Pruning")
    parser.add_argument("--resume", action="store_true", help="keep the rows that exist")
    args = parser.parse_args()
    preload("architectures.preloaded", "coverage_row")
    catalogue = [architecture.name for architecture in architectures()]
    rows = {name: row for name, row in known_rows().items() if name in catalogue}
    wanted = [name for name in catalogue if fnmatchcase(name, args.only)]
    if args.resume:
        wanted = [name for name in wanted if name not in rows]
    work = {name: partial(both, name, args.limit, args.peer_limit) for name in wanted}
    for name, row in run_all("coverage", work, jobs=args.jobs):
        rows[name] = row
        # Written as it grows: an interrupted run resumes.
        ordered = [rows[known] for known in catalogue if known in rows]
        record("coverage", {"summary": summary(ordered), "rows": ordered})
    if rows:
        ordered = [rows[name] for name in catalogue if name in rows]
        show("Stock architectures", [shown(row) for row in ordered])
        show("In all", [summary(ordered)])


if __name__ == "__main__":
    main()
