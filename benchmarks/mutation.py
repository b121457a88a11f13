"""Would the tests notice if the core were wrong? Small faults, one at a time.

    pip install mutmut==3.8.1
    python benchmarks/mutation.py --sample 200

mutmut makes every fault that it knows in ``taskprune/coupling`` and ``taskprune/rewrite`` of a copy
of the last commit: a comparison turned, a number changed, an argument left out. A sample of them,
drawn by a seed, is tried one after the other by the tests that run the function (of
``tests/properties``, ``tests/coupling`` and ``tests/rewrite``); what these let pass meets those of
``WIDER``. A fault is *noticed* if a test fails or takes many times as long. A run that was stopped
goes on where it was, in ``--folder``.

Faults that no test noticed were read: most change nothing that can be seen, and ``READ`` says why.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol import record, show
from rich.progress import track

ROOT = Path(__file__).parents[1]
ROOMS = ("coupling", "rewrite")
TESTS = ("tests/properties", "tests/coupling", "tests/rewrite")
WIDER = ("tests/checkpoint", "tests/plan", "tests/replace", "tests/testing")
_LINE = "\n    "
CONFIG = f"""[mutmut]
source_paths ={_LINE}{_LINE.join(f"taskprune/{room}" for room in ROOMS)}
also_copy =
    taskprune
    benchmarks
    docs
    examples
pytest_add_cli_args_test_selection ={_LINE}{_LINE.join(TESTS)}
pytest_add_cli_args =
    -q
    -W
    ignore
timeout_multiplier = 4.0
timeout_constant = 20.0
track_dependencies = false
use_git_change_detection = false
"""

ENDED = {0: "survived", 1: "noticed", 3: "noticed", 5: "no test", 33: "no test"}
"""What mutmut's exit codes mean; all others are tests that ran out of time or crashed: noticed."""

PASSED = ("survived", "no test")
"""How faults end that nothing noticed."""

READ: Mapping[str, str] = {
    "taskprune.coupling.forms.xǁFormǁfloor_divided__mutmut_26": (
        "counts are positive, and `int` cuts off what is behind the point"
    ),
    "taskprune.coupling.splitting.x__layer__mutmut_23": (
        "layers of exactly these classes hand over their own bias, which is what is asked"
    ),
    "taskprune.rewrite.carrying_over.x_carry_over__mutmut_57": (
        "without inputs nothing is compared, asked or not"
    ),
}
"""Why nothing can tell these faults from the code as it is."""


def prepare(folder: Path) -> None:
    """Copy the last commit, make the faults, and find out which tests run which function."""
    if not (folder / "setup.cfg").exists():
        folder.mkdir(parents=True, exist_ok=True)
        unpack(folder)
        (folder / "setup.cfg").write_text(CONFIG)
    if not (folder / "mutants" / "mutmut-stats.json").exists():
        mutmut(folder, "run", "none-of-them")  # ends with an error once all is ready
    if not (folder / "mutants" / "mutmut-stats.json").exists():
        raise SystemExit(f"mutmut found out nothing: see `mutmut run` in {folder}.")


def unpack(folder: Path, *parts: str) -> None:
    """Write the last commit, or parts of it, to a folder."""
    command = ["git", "archive", "HEAD", *parts]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=folder, check=True, input=archive.stdout)


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in a folder and return what it says."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    return done.stdout


def _environment() -> dict[str, str]:
    """Return this process's environment, without what would find the code as it is."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def faults(folder: Path) -> dict[str, int | None]:
    """Return all faults and their exit codes so far; ``None``: not tried."""
    found: dict[str, int | None] = {}
    for path in sorted((folder / "mutants" / "taskprune").rglob("*.meta")):
        found.update(json.loads(path.read_text())["exit_code_by_key"])
    found.update({n: code for n, code in by_wider(folder).items() if ended(found[n]) != "noticed"})
    return dict(sorted(found.items()))


def try_wider(folder: Path, name: str, tests: Sequence[str]) -> None:
    """Try a fault by more tests, and keep what it came to."""
    place = folder / "mutants"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-W", "ignore", *tests]
    environment = {**_environment(), "MUTANT_UNDER_TEST": name, "PYTHONPATH": str(place)}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False)
    kept = folder / "wider.json"
    kept.write_text(json.dumps({**by_wider(folder), name: done.returncode}))


def by_wider(folder: Path) -> dict[str, int]:
    """Return the exit codes of faults that met the wider tests."""
    kept = folder / "wider.json"
    found: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
    return found


def sampled(names: Sequence[str], n: int, seed: int) -> list[str]:
    """Draw faults; a larger sample holds a smaller one of the same seed."""
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:n]


def ended(code: int | None) -> str:
    """Say how a fault ended."""
    return "not tried" if code is None else ENDED.get(code, "noticed")


def room(name: str) -> str:
    """Return the room that a fault is in."""
    return name.split(".")[1]


def summary(folder: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Return a row a room, and every fault that was not noticed."""
    codes = faults(folder)
    counts = {own: Counter(ended(codes[n]) for n in chosen if room(n) == own) for own in ROOMS}
    return {
        "faults": len(codes),
        "rows": [
            {
                "room": own,
                "faults": sum(room(name) == own for name in codes),
                "tried": sum(n for how, n in count.items() if how != "not tried"),
                "noticed": count["noticed"],
                "no test": count["no test"],
                "explained": len([*_survivors(codes, chosen, own, explained=True)]),
                "not noticed": len([*_survivors(codes, chosen, own, explained=False)]),
            }
            for own, count in counts.items()
        ],
        "survivors": [
            {"fault": name, "change": change(folder, name), "read": READ.get(name, "")}
            for own in ROOMS
            for name in _survivors(codes, chosen, own)
        ],
    }


def _survivors(
    codes: Mapping[str, int | None],
    chosen: Sequence[str],
    own: str,
    *,
    explained: bool | None = None,
) -> Iterator[str]:
    for name in chosen:
        told = explained is None or (name in READ) is explained
        if told and room(name) == own and ended(codes[name]) in PASSED:
            yield name


def change(folder: Path, name: str) -> list[str]:
    """Return the lines that a fault changes."""
    lines = mutmut(folder, "show", name).splitlines()
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def try_faults(folder: Path, n: int, seed: int, *, again: bool) -> None:
    """Try a sample, and what passed by more tests; once more by the tests of today if asked to."""
    prepare(folder)
    codes = faults(folder)
    chosen = sampled(list(codes), n, seed)
    waiting = [name for name in chosen if ended(codes[name]) == "not tried"]
    if waiting:
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *waiting]
        # It keeps what each came to.
        subprocess.run(command, cwd=folder, env=_environment(), check=False)
    codes, met = faults(folder), by_wider(folder)
    passed = [name for name in chosen if ended(codes[name]) in PASSED]
    for name in track([n for n in passed if n not in met], "wider tests"):
        try_wider(folder, name, WIDER)
    if again:
        unpack(folder / "mutants", "tests")
        codes = faults(folder)
        for name in track([n for n in passed if n not in READ], "tests of today"):
            if ended(codes[name]) != "noticed":
                try_wider(folder, name, (*WIDER, *TESTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="how many faults to try")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "mutation")
    parser.add_argument("--again", action="store_true", help="try survivors by the tests of today")
    parser.add_argument("--finished", action="store_true", help="tabulate, try nothing")
    args = parser.parse_args()
    if not args.finished:
        try_faults(args.folder, args.sample, args.seed, again=args.again)
    chosen = sampled(list(faults(args.folder)), args.sample, args.seed)
    found = summary(args.folder, chosen)
    show("Faults in the core, and what became of them", found["rows"])
    record("mutation", {"seed": args.seed, **found})


if __name__ == "__main__":
    main()
