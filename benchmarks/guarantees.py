"""Does what is promised of scores, limits and budgets hold? A measured line for each promise.

On the bundled three-task network and generated scenes, unless the line says otherwise. What takes
longer has a script of its own, and is read from the file that it wrote: ``scoring.py`` (what
scoring costs), ``latency.py``, ``solver.py``; ``criteria.py`` compares metrics.

    python benchmarks/guarantees.py
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from architectures.torchvision_import import import_torchvision
from promised import Bundled, Guarantee
from promises_of_plans import guarantees_of_plans
from protocol import record, show
from torch import Tensor
from torch import distributed as processes

import taskprune
from taskprune import Task
from taskprune.coupling import couple
from taskprune.graph import trace
from taskprune.importance import (
    TaskTaylorImportance,
    TorchPruningImportance,
    as_they_are,
    score,
)
from taskprune.importance.channel_index import ChannelIndex
from taskprune.importance.effects import collect
from taskprune.importance.scores import ChannelScores, Evidence


def guarantees_of_scores(net: Bundled) -> Iterator[Guarantee]:
    """Yield what is promised of scores."""
    plain = net.scores()
    loud = {
        name: Task(_scaled(task, 1000.0) if name == "lane" else task.loss, outputs=task.outputs)
        for name, task in net.tasks.items()
    }
    plans = [net.plan(0.6, scores) for scores in (plain, net.scores(tasks=loud))]
    odd = _n_different(plans[0].drop, plans[1].drop)
    yield Guarantee.equal("one loss times 1000: channels decided otherwise", odd, 0)

    free = net.scores(TaskTaylorImportance(conflict_weight=0.0))
    off = max(float((free[g].total - free[g].per_task.sum(0)).abs().max()) for g in free.groups)
    yield Guarantee.equal("λ = 0: difference to the sum of the tasks' Taylor scores", off, 0.0)

    one = {"lane": net.tasks["lane"]}
    off = _furthest(net.scores(tasks=one), net.scores("taylor", tasks=one))
    yield Guarantee.equal("one task: difference to Taylor of its loss", off, 0.0)

    own = net.scores(data=dict.fromkeys(net.tasks, net.batches), n_batches=None)
    off = _furthest(net.scores(TaskTaylorImportance(0.0)), own, per_task=True)
    yield Guarantee.below("a loader for each task, same data: relative difference", off, 1e-6)

    rare = {
        name: Task(_only_on(task, net.batches[::2]) if name == "lane" else task.loss)
        for name, task in net.tasks.items()
    }
    raw = TaskTaylorImportance(conflict_weight=0.0, normalise=as_they_are)
    some = net.scores(raw, tasks=rare)
    half = net.scores(raw, tasks=one, data=net.batches[::2])
    row = list(net.tasks).index("lane")
    off = max(_apart(some[g].per_task[row], half[g].per_task[0]) for g in some.groups)
    yield Guarantee.below("labels in every other batch: difference to those batches", off, 1e-6)

    index = ChannelIndex(net.groups)
    evidence = Evidence(tasks=net.tasks, batches=net.batches[:1], forward=net.forward)
    sums = collect(net.model, index, evidence)
    held = sum(t.numel() for t in (sums.products, sums.opposition, sums.mean_loss, sums.n_labelled))
    per = held / (index.n_channels * len(net.tasks) ** 2)
    yield Guarantee.below("numbers kept while scoring, per channel and pair of tasks", per, 3.0)

    stable = net.scores(data=net.batches * 25, calibrate="auto").n_batches
    of = 25 * len(net.batches)
    yield Guarantee.below(f'calibrate="auto": batches taken of {of}', stable, of - 1)
    yield Guarantee.below("two processes: relative difference of scores", _by_processes(), 1e-6)
    yield Guarantee.below("Torch-Pruning's criterion through the adapter, resnet18", _peer(), 1e-6)
    yield from _task_map(net)


def _task_map(net: Bundled) -> Iterator[Guarantee]:
    index = ChannelIndex(net.groups)
    parameters = index.find(dict(net.model.named_parameters()))
    outputs = net.forward(net.model.eval(), net.batches[0])
    wrong = silent = pairs = 0
    for name, task in net.tasks.items():
        loss = task.loss(outputs, net.batches[0])
        assert loss is not None
        found = torch.autograd.grad(
            loss, tuple(parameters.values()), retain_graph=True, allow_unused=True
        )
        slopes = {n: None if g is None else g.abs() for n, g in zip(parameters, found, strict=True)}
        reached = index.sums(slopes, torch.device("cpu"))
        for group in net.groups:
            pairs += 1
            has = bool((reached[index.slices[group.name]] > 0).any())
            wrong += has and name not in group.tasks
            silent += not has and name in group.tasks
    yield Guarantee.equal(f"of {pairs} pairs of group and task: gradients that must be 0", wrong, 0)
    yield Guarantee.equal("and tasks of a group that have no gradient there", silent, 0)


def _peer() -> float:
    """Return how far the adapter's scores are from the criterion's own, group by group."""
    torch.manual_seed(0)
    net = import_torchvision().models.resnet18().eval()
    image = torch.randn(1, 3, 64, 64)
    groups = couple(trace(net, (image,)))
    criterion = tp.importance.GroupMagnitudeImportance()
    ours = score(net, groups, {}, (), importance=TorchPruningImportance(criterion))
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=image)
    apart = []
    for group in groups:
        layer = net.get_submodule(group.name)
        every = list(range(group.n_channels))
        theirs = criterion(graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=every))
        apart.append(_apart(ours[group.name].total, theirs.detach().double()))
    return max(apart)


def _by_processes() -> float:
    """Return how far the scores of two processes are from those of one on the same batches."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += ["--standalone", str(Path(__file__)), "--as-process", folder]
        subprocess.run(command, check=True, capture_output=True)
        both = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    alone = _totals(Bundled().scores())
    return max(_apart(found[g], alone[g]) for found in both for g in alone)


def _score_as_process(folder: Path) -> None:
    processes.init_process_group("gloo")
    net, rank = Bundled(), processes.get_rank()
    torch.save(_totals(net.scores(data=net.batches[rank::2])), folder / f"{rank}.pt")
    processes.destroy_process_group()


def _scaled(task: Task, factor: float) -> Any:
    def loss(outputs: Any, batch: Any) -> Tensor | None:
        found = task.loss(outputs, batch)
        return None if found is None else factor * found

    return loss


def _only_on(task: Task, batches: list[Any]) -> Any:
    known = {id(batch) for batch in batches}
    return lambda outputs, batch: task.loss(outputs, batch) if id(batch) in known else None


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def _furthest(a: ChannelScores, b: ChannelScores, *, per_task: bool = False) -> float:
    key = "per_task" if per_task else "total"
    return max(_apart(getattr(a[g], key), getattr(b[g], key)) for g in a.groups)


def _totals(scores: ChannelScores) -> dict[str, Tensor]:
    return {name: own.total for name, own in scores.groups.items()}


def _n_different(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    names = {*a, *b}
    return sum(len({*map(int, a.get(n, ()))} ^ {*map(int, b.get(n, ()))}) for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--as-process", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.as_process:
        _score_as_process(args.as_process)
        return
    net = Bundled()
    found = []
    for guarantee in itertools.chain(guarantees_of_scores(net), guarantees_of_plans(net)):
        print(f"{guarantee.promise}: {guarantee.measured} ({guarantee.asked})")
        found.append(asdict(guarantee))
    show("Guarantees", found)
    record("guarantees", {"taskprune": taskprune.__version__, "rows": found})
    if not all(row["holds"] for row in found):
        raise SystemExit("Not all of them hold.")


if __name__ == "__main__":
    main()
