"""The bundled three-task driving network, stage by stage, with every record shown on the way.

Run it with ``python examples/driving.py``; it takes half a minute on a CPU. ``taskprune demo``
does the same through the front door and adds distillation, pictures and a report.
"""

from rich.console import Console

import taskprune
from taskprune.cost import measure_latency
from taskprune.driving.data import RoadScenes, loader
from taskprune.driving.tasks import driving_tasks, forward
from taskprune.driving.teacher import load_teacher


def main() -> None:
    console = Console()
    teacher = load_teacher()
    tasks = driving_tasks()
    batches = list(loader(RoadScenes(8, seed=5), batch_size=4, shuffle=False, seed=0))

    graph = taskprune.trace(teacher, batches[0], forward=forward, tasks=tasks)
    groups = taskprune.couple(graph)
    console.rule(f"{len(groups)} groups of channels live or die together")
    for group in list(groups)[::12]:
        console.print(f"{group.name}: {group.n_channels} channels, for {sorted(group.tasks)}")
    for frozen in groups.frozen:
        reason = frozen.reasons[0]
        console.print(f"frozen: {frozen.name}: {reason.detail} ({reason.source})")

    console.rule("what each task would lose")
    scores = taskprune.score(teacher, groups, tasks, batches, forward=forward)
    for group in list(groups)[::12]:
        per_task = scores[group.name].per_task.sum(dim=1)
        shares = ", ".join(
            f"{t} {float(v):.2e}" for t, v in zip(scores.tasks, per_task, strict=True)
        )
        console.print(f"{group.name}: {shares}")

    console.rule("a third of the parameters and of the multiply-adds goes")
    plan = taskprune.solve(groups, scores, taskprune.Budget(params=0.673, macs=0.673))
    student = taskprune.apply_plan(teacher, plan, example_inputs=batches[0], forward=forward)
    for name, (before, after) in plan.costs.items():
        console.print(f"{name}: {before:,} to {after:,}")
    models = {"teacher": teacher, "student": student}
    for name, latency in measure_latency(models, (batches[0].images[:1],)).items():
        console.print(f"latency of the {name}: {latency}")


if __name__ == "__main__":
    main()
