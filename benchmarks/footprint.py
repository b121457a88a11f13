"""What does pruning weigh beside the model: seconds, memory, import?

    python benchmarks/footprint.py [--only PATTERN] [--limit 600] [--jobs 1]

Each model is pruned by `prune` with and without its verification, and by Torch-Pruning, to about
30 % fewer parameters by magnitude, each in a process of its own with one thread. Seconds are
processor time, also as a multiple of the model's own forward pass on the same input. Memory is the
peak of the resident set above what the process held when model and input were there and one forward
pass had run, also as a multiple of the model's weights. `prune` hands out a second, smaller model
within that and leaves the first as it was; Torch-Pruning cuts the model it is given. Import is the
processor time of an import once torch is there, the least of three processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from children import Outcome, limit_processor_time, report, run_all, run_child
from peers import torch_pruning_result
from protocol import record, show
from torch import Tensor, nn

import taskprune
from taskprune import PruneSettings
from taskprune.driving.nets import build_net

RATIO = 0.3


def perceptron() -> tuple[nn.Module, Tensor]:
    """304 million parameters in 18 layers."""
    width = 4096
    layers: list[nn.Module] = [nn.Linear(width, width)]
    for _ in range(17):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers), torch.randn(16, width)


def transformer() -> tuple[nn.Module, Tensor]:
    """302 million parameters in 24 layers, with torch's own attention."""
    layer = nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True)
    return nn.TransformerEncoder(layer, 24, enable_nested_tensor=False), torch.randn(1, 64, 1024)


def convolutions() -> tuple[nn.Module, Tensor]:
    """300 million parameters in 32 layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, 1024, 3, padding=1), nn.BatchNorm2d(1024), nn.ReLU()]
    for _ in range(31):
        layers += [nn.Conv2d(1024, 1024, 3, padding=1), nn.BatchNorm2d(1024), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


def driving() -> tuple[nn.Module, Tensor]:
    return build_net("l"), torch.randn(1, 3, 640, 640)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "perceptron, 300 M": perceptron,
    "convolutions, 300 M": convolutions,
    "transformer, 300 M": transformer,
    "driving l, 640 x 640": driving,
}
IMPORTS = ("import taskprune", "from taskprune import prune", "import torch_pruning")
WAYS = ("taskprune", "taskprune, unverified", "torch-pruning")


def resident() -> float:
    """Return how many bytes of memory the process holds now."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak()  # so far, the nearest that other systems tell
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak() -> float:
    """Return how many bytes of memory the process has held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 2**10)


@contextmanager
def weighed(outcome: Outcome) -> Iterator[None]:
    """Take down the seconds of a block, and its peak of memory above the present."""
    before, start = resident(), time.process_time()
    yield
    outcome["seconds"] = time.process_time() - start
    outcome["bytes"] = max(peak() - before, 0.0)


def measured(way: str, name: str, *, limit: float) -> Outcome:
    """Prune one model one way, in this process, which ends at the limit."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval()
    limit_processor_time(limit)
    outcome: Outcome = {"outcome": "ok", "forward": forward_seconds(model, inputs)}
    outcome["weights"] = sum(p.nbytes for p in model.parameters())
    with weighed(outcome):
        if way == "torch-pruning":
            outcome |= torch_pruning_result(model, inputs, ratio=1 - (1 - RATIO) ** 0.5)
        else:
            settings = PruneSettings(verify=way == "taskprune")
            result = taskprune.prune(
                model,
                ratio=RATIO,
                example_inputs=inputs,
                importance="magnitude",
                settings=settings,
            )
            outcome["verification"] = str(result.report.verification)
            outcome["removed"] = 1 - measured_params(result.model) / measured_params(model)
    return outcome


def measured_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def forward_seconds(model: nn.Module, inputs: Any) -> float:
    """Return the processor time of one forward pass, the least of three after a first."""
    found = []
    with torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            model(inputs)
            found.append(time.process_time() - start)
    return min(found[1:])


def import_seconds(statement: str) -> float:
    """Return the processor time of an import where torch is there already."""
    code = (
        "import time, torch; start = time.process_time(); "
        f"{statement}; print(time.process_time() - start)"
    )
    # Compiled once, by the first process, as installing does.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return min(
        float(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(3)
    )


def shown(name: str, way: str, outcome: Outcome) -> dict[str, Any]:
    """Return a row of the table."""
    row: dict[str, Any] = {"model": name, "by": way}
    if "bytes" not in outcome:
        return row | {"removed": outcome["outcome"][:60]}
    return row | {
        "removed": f"{100 * outcome['removed']:.1f} %" if "removed" in outcome else "",
        "seconds": outcome["seconds"],
        "forward passes": outcome["seconds"] / outcome["forward"],
        "GB": outcome["bytes"] / 2**30,
        "models": outcome["bytes"] / outcome["weights"],
        "outcome": outcome["outcome"][:40],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern of model names")
    parser.add_argument("--limit", type=float, default=600.0, help="processor seconds of each")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        report(measured(*args.child, limit=args.limit))
        return
    names = [name for name in MODELS if fnmatchcase(name, args.only)]
    work = {
        f"{way} on {name}": partial(run_child, __file__, ["--child", way, name], limit=args.limit)
        for name in names
        for way in WAYS
    }
    done = dict(run_all("footprint", work, jobs=args.jobs))
    rows = {name: {way: done[f"{way} on {name}"] for way in WAYS} for name in names}
    lines = [shown(name, way, row[way]) for name, row in rows.items() for way in WAYS]
    show("What pruning weighs", lines)
    imports = {statement: import_seconds(statement) for statement in IMPORTS}
    show("Import after torch", [{"statement": n, "seconds": s} for n, s in imports.items()])
    if args.only == "*":
        record(
            "footprint",
            {
                "limit_s": args.limit,
                "rows": [{"name": name, **row} for name, row in rows.items()],
                "imports": imports,
            },
        )


if __name__ == "__main__":
    main()
