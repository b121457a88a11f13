"""Where does time go, and what of the multiply-adds that are removed comes back as time?

Networks and students of theirs at several budgets, in eager PyTorch, compiled, in ONNX Runtime and
there in 8-bit integers, one image and eight, on one thread and two. All
models of a cell take turns in one process. Weights of students are not compensated: times do not
depend on them.

In pieces of a few minutes, each of which a kill may end:

    python benchmarks/speed.py --plan n         # students; times operators, so on a quiet machine
    python benchmarks/speed.py --prepare n      # ONNX files and compiled code, on any machine
    python benchmarks/speed.py --measure n      # cells that are not there yet, on a quiet machine
    python benchmarks/speed.py --gather         # results/speed.json and the plot
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from architectures.torchvision_import import import_torchvision
from cells import Cells
from protocol import record, show
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taskprune import export
from taskprune.calling.forward import call_inputs
from taskprune.cost import count_macs, measure_latency
from taskprune.coupling import couple
from taskprune.deployment.latency import ModelTimer, landed, measured_cost
from taskprune.deployment.onnx_files import OnnxModel, quantize_onnx
from taskprune.deployment.runtimes import in_runtime, running
from taskprune.driving.nets import build_net
from taskprune.driving.teacher import load_teacher
from taskprune.files import replacing, writing
from taskprune.graph import trace
from taskprune.importance import importance_by_name, score
from taskprune.plan.plan import PruningPlan
from taskprune.restore import evaluating, flushed_denormals
from taskprune.rewrite import apply_plan
from taskprune.solver import solve
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

RUNS = Path(__file__).parents[1] / "runs" / "speed"
SIZE = {"n": (192, 320), "l": (128, 192), "resnet18": (192, 320)}
BUDGETS = {
    "params 67 %, MACs 80 %": (Budget(params=0.673, macs=0.8), Safety(round_to=16)),
    "MACs 50 %": (Budget(macs=0.5), Safety()),
    "latency 65 %": (
        Budget(latency_ms=0.65),
        Safety(protected_quantile=1.0, round_to=8, min_channels=8),
    ),
}
STAGES = {
    "backbone": ("backbone",),
    "encoder": ("encoder", "project", "detection_gates", "segmentation_gates"),
    "detection decoder": ("detection",),
    "drivable and lane decoder": ("segmentation",),
}
"""The two segmentation tasks lie in the batch of one decoder: neither has a time of its own."""

COMPILED = ("original", "latency 65 %")
"""Compiling one takes minutes: on one image and one thread."""

BATCHES = (1, 8)
THREADS = (1, 2)
REPEATS = {1: 25, 8: 5}


def original(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "n":
        return load_teacher(None).eval()
    if name == "l":
        return build_net("l").eval()
    made: nn.Module = import_torchvision().models.resnet18().eval()
    return made


def images(name: str, batch: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, *SIZE[name], generator=generator).to(device)


def plan(name: str) -> None:
    """Choose the students, and which groups buy no time."""
    net, inputs = original(name), (images(name, 1),)
    groups = couple(trace(net, inputs))
    scores = score(net, groups, {}, (), importance=importance_by_name("magnitude"))
    timer = ModelTimer(inputs)
    cost = measured_cost(net, groups, timer, progress=None)
    for label, (budget, safety) in BUDGETS.items():

        def solved(own: Any, budget: Budget = budget, safety: Safety = safety) -> PruningPlan:
            return solve(groups, scores, budget, safety=safety, costs={"latency_ns": own})

        is_timed = budget.latency_ms is not None
        made = landed(cost, net, timer, solved) if is_timed else solved(cost)
        path = RUNS / f"{name}-{label}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        made.save(path)
        print(label, {c: round(b / a, 3) for c, (a, b) in made.costs.items()})
    flat = {"net": name, "flat": list(cost.flat), "groups": len(groups.groups)}
    Cells("speed").append({"kind": "groups", **flat})
    print(flat)


def students(name: str) -> dict[str, nn.Module]:
    """Return the original and its students."""
    net = original(name)
    plans = {label: PruningPlan.load(RUNS / f"{name}-{label}.json") for label in BUDGETS}
    return {"original": net} | {label: apply_plan(net, own) for label, own in plans.items()}


def onnx_file(name: str, label: str, *, quantized: bool) -> Path:
    return RUNS / f"{name}-{label}{'-int8' if quantized else ''}.onnx"


def prepare(name: str) -> None:
    """Write ONNX files, and let compiled code be found in the compiler's cache."""
    torch.set_num_threads(1)
    inputs, models = images(name, 2), students(name)
    for label, model in sorted(models.items(), key=lambda item: item[0] not in COMPILED):
        path, smaller = (onnx_file(name, label, quantized=q) for q in (False, True))
        if smaller.exists():
            continue
        start = time.perf_counter()
        export(model, path, inputs, tolerance=math.inf)
        with writing(smaller), replacing(smaller) as part:
            shutil.copyfile(path, part)
            with torch.no_grad():
                like = model(inputs)
            quantize_onnx(part, [((inputs,), {})] * 2, OnnxModel(part, like))
        print(path.name, f"{time.perf_counter() - start:.0f} s", flush=True)
    for label in COMPILED:
        start = time.perf_counter()
        made = in_runtime(models[label], (inputs[:1],), call_inputs, "compiled")
        with running("compiled", models[label]):
            measure_latency({label: made}, (images(name, 1),), repeats=2, warmup=1)
        print("compiled", label, f"{time.perf_counter() - start:.0f} s", flush=True)


def measure(name: str) -> None:
    """Time all cells that are not there yet."""
    cells, models = Cells("speed"), students(name)
    torch.set_num_threads(1)
    if name != "resnet18" and not cells.has({"kind": "stages", "net": name}):
        cells.append({"kind": "stages", "net": name, **_by_stage(name, models)})
    for batch in BATCHES:
        for threads in THREADS:
            key = {"kind": "times", "net": name, "batch": batch, "threads": threads}
            if not cells.has(key):
                torch.set_num_threads(threads)
                print(key, flush=True)
                cells.append({**key, "device": "cpu", "ms": _in_turn(name, models, batch)})
    torch.set_num_threads(1)
    key = {"kind": "compiled", "net": name, "batch": 1, "threads": 1}
    if not cells.has(key):
        cells.append({**key, "device": "cpu", "ms": _compiled(name, models)})


def _in_turn(name: str, models: Mapping[str, nn.Module], batch: int) -> dict[str, Any]:
    inputs = images(name, batch)
    running_as: dict[str, nn.Module] = {}
    for label, model in models.items():
        running_as[f"eager/{label}"] = model
        with torch.no_grad():
            like = model(inputs)
        for runtime in ("onnx", "onnx int8"):
            path = onnx_file(name, label, quantized=runtime != "onnx")
            if path.exists():
                running_as[f"{runtime}/{label}"] = OnnxModel(path, like)
    return _reports(running_as, inputs, REPEATS[batch])


def _compiled(name: str, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    inputs = images(name, 1)
    made = {
        f"{runtime}/{label}": in_runtime(model, (inputs,), call_inputs, runtime)
        for label, model in models.items()
        for runtime in ("eager", "compiled")
        if label in COMPILED
    }
    with running("compiled", models["original"]):
        return _reports(made, inputs, REPEATS[1])


def _reports(models: Mapping[str, nn.Module], inputs: Tensor, repeats: int) -> dict[str, Any]:
    found = measure_latency(models, (inputs,), repeats=repeats, warmup=2)
    return {name: [own.median_ms, own.lower_ms, own.upper_ms] for name, own in found.items()}


def _by_stage(name: str, models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return multiply-adds and median milliseconds of each stage, timed where it stands."""
    inputs = images(name, 1)
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(REPEATS[1]):
        for label, model in models.items():
            with evaluating(model), torch.inference_mode(), flushed_denormals():
                for stage, ms in _one_pass(model, inputs).items():
                    times.setdefault(label, {}).setdefault(stage, []).append(ms)
    return {
        "ms": {
            label: {stage: sorted(ms)[len(ms) // 2] for stage, ms in own.items()}
            for label, own in times.items()
        },
        "macs": {label: _macs(model, inputs) for label, model in models.items()},
    }


def _one_pass(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    started: list[float] = []

    def begin(*_: Any) -> None:
        started.append(time.perf_counter())

    def ended(stage: str) -> Any:
        def end(*_: Any) -> None:
            spent[stage] += 1e3 * (time.perf_counter() - started.pop())

        return end

    handles = []
    for stage, module in _modules(model):
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(ended(stage)))
    start = time.perf_counter()
    model(inputs)
    whole = 1e3 * (time.perf_counter() - start)
    for handle in handles:
        handle.remove()
    return {**spent, "whole": whole}


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for stage, names in STAGES.items():
        for name in names:
            module = model.get_submodule(name)
            # A list of modules has no forward of its own.
            for each in module if isinstance(module, nn.ModuleList) else (module,):
                yield stage, each


def _macs(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    found: dict[str, int] = {}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    counts = counter.get_flop_counts()
    prefix = type(model).__name__
    for stage, names in STAGES.items():
        own = [f"{prefix}.{name}" for name in names]
        found[stage] = sum(
            sum(by.values()) // 2
            for path, by in counts.items()
            if path in own or (path.rpartition(".")[0] in own and path.rpartition(".")[2].isdigit())
        )
    return found


def gather() -> None:
    cells = Cells("speed").all()
    rows: list[dict[str, Any]] = []
    left: dict[str, dict[str, float]] = {}
    for name in sorted({cell["net"] for cell in cells}):
        inputs = (images(name, 1),)
        macs = {
            label: count_macs(couple(trace(model, inputs)))
            for label, model in students(name).items()
        }
        left[name] = {label: own / macs["original"] for label, own in macs.items()}
    for cell in cells:
        if cell["kind"] not in ("times", "compiled"):
            continue
        for key, (median, lower, upper) in cell["ms"].items():
            runtime, _, label = key.partition("/")
            if cell["kind"] == "compiled" and runtime == "eager":
                continue
            whole = cell["ms"][f"{runtime}/original"][0]
            rows.append(
                {
                    "net": cell["net"],
                    "model": label,
                    "runtime": runtime,
                    "batch": cell["batch"],
                    "threads": cell["threads"],
                    "device": cell["device"],
                    "MACs left": left[cell["net"]][label],
                    "median ms": median,
                    "lower": lower,
                    "upper": upper,
                    "times faster": whole / median,
                }
            )
    show("Speed", rows)
    content = {
        "rows": rows,
        "stages": [c for c in cells if c["kind"] == "stages"],
        "groups": [c for c in cells if c["kind"] == "groups"],
        "settings": {
            "size": SIZE,
            "budgets": {label: [str(b), str(s)] for label, (b, s) in BUDGETS.items()},
        },
    }
    record("speed", content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for piece in ("plan", "prepare", "measure"):
        parser.add_argument(f"--{piece}", choices=sorted(SIZE))
    parser.add_argument("--gather", action="store_true")
    args = parser.parse_args()
    if args.plan:
        torch.set_num_threads(1)
        plan(args.plan)
    if args.prepare:
        prepare(args.prepare)
    if args.measure:
        measure(args.measure)
    if args.gather:
        gather()


if __name__ == "__main__":
    main()
