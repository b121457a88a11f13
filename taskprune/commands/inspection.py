"""``taskprune inspect``: what a model consists of, before anything is removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from taskprune.commands import arguments
from taskprune.terminal import plain_errors

ROWS = 40
"""Rows of a table; `--json` has all."""


def inspect(
    model: arguments.Model,
    depth: Annotated[int, typer.Option(help="How deep in the model costs are told.", min=1)] = 2,
    as_json: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Show what can shrink, for whom, what is frozen and why, and where the costs are."""
    with plain_errors(debug=debug):
        from taskprune.commands.entering import enter
        from taskprune.commands.showing import show

        source = enter(model)
        found = _examined(source)
        record = _record(source, found, depth)
        show(_parts(source, record), record, as_json=as_json)


def _examined(source: Any) -> Any:
    """Trace and couple as pruning does, whatever the channels are worth."""
    from taskprune import Budget, Task, trace
    from taskprune.front.job import Job, at_work, examine

    model, data, tasks = source.model(), source.data(), source.tasks()
    example, forward = source.inputs()
    if data is None:
        # Every output is a task, as where there is data; with this criterion no loss is asked.
        paths = {output.path for output in trace(model, example, forward=forward).outputs}
        tasks = {path: Task(loss=lambda *_: None, outputs=path) for path in sorted(paths)}
    job = Job(
        tasks=tasks or {},
        budget=Budget(params=1.0),
        data=data,
        example_inputs=source.example(),
        forward=source.forward,
        importance="magnitude",
    )
    with at_work("Inspecting") as say:
        return examine(job, model, say)


def _record(source: Any, found: Any, depth: int) -> dict[str, Any]:
    """Return all that was found as JSON can hold it."""
    from dataclasses import asdict

    from taskprune.plan import FrozenDecision

    groups = found.groups
    return {
        "model": source.reference,
        "class": type(found.model).__name__,
        "tasks": list(groups.tasks),
        "costs": _costs(groups),
        "modules": list(_by_module(groups, depth)),
        "groups": [
            {
                "name": group.name,
                "channels": group.n_channels,
                "step": group.step,
                "tasks": sorted(group.tasks),
                "parameters_a_channel": _marginals(groups)[group.name],
            }
            for group in groups
        ],
        "frozen": [asdict(FrozenDecision.of(group)) for group in groups.frozen],
        "untraced": list(groups.untraced),
        "replaced": [record.path for record in groups.replacements],
        "notes": [*([source.note] if source.note else []), *found.graph.notes],
    }


def _costs(groups: Any) -> dict[str, int]:
    from taskprune.cost import count_macs, count_params

    return {"params": count_params(groups), "macs": count_macs(groups) // groups.batch_size}


def _marginals(groups: Any) -> Mapping[str, int]:
    """Return how many parameters go with one channel of each group."""
    from taskprune.cost import CostModel

    model = CostModel.of_params(groups)
    return dict(zip(model.names, model.marginals().tolist(), strict=True))


def _by_module(groups: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Yield what the modules down to some depth cost, in the order they are run in."""
    from math import prod

    makes: dict[str, set[str]] = {}
    reads: dict[str, set[str]] = {}
    params: dict[str, int] = {}
    macs: dict[str, int] = {}

    def part(path: str) -> str:
        return ".".join(path.split(".")[:depth]) if path else "(model)"

    for term in groups.macs:
        counts = groups.full_counts()
        cost = term.multiplier * prod(factor.value(counts) for factor in term.factors)
        macs[part(term.module)] = macs.get(part(term.module), 0) + cost
    for name in groups.shapes:
        if name in groups.parameter_names:
            module = part(name.rpartition(".")[0])
            params[module] = params.get(module, 0) + prod(groups.shapes[name])
    for group in (*groups.groups, *groups.frozen):
        for member in group.members:
            tasks = makes if member.produces else reads
            tasks.setdefault(part(member.name.rpartition(".")[0]), set()).update(group.tasks)
    for module in dict.fromkeys((*params, *macs)):
        yield {
            "module": module,
            "params": params.get(module, 0),
            "macs": macs.get(module, 0) // groups.batch_size,
            "tasks": sorted(makes.get(module) or reads.get(module, set())),
        }


def _parts(source: Any, record: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    from taskprune.commands.showing import next_steps

    params, macs = record["costs"]["params"], record["costs"]["macs"]
    free = sum(len(group["tasks"]) > 1 for group in record["groups"])
    head = (
        f"{record['class']} of {source.reference}: {params:,} parameters, {macs:,} multiply-adds a "
        f"sample; tasks: {', '.join(record['tasks']) or 'none'}."
    )
    can = (
        f"{len(record['groups'])} groups of channels can shrink, {free} of them shared by several "
        f"tasks; {len(record['frozen'])} are frozen."
    )
    parts: list[Any] = [Text(head), Text(can), _module_table(record), _group_table(record)]
    parts += _frozen_parts(record)
    if record["replaced"]:
        paths = ", ".join(record["replaced"][:4]) + (" …" if record["replaced"][4:] else "")
        parts.append(Text(f"Replaced by equal modules that can shrink: {paths}."))
    parts += [Text(f"Note: {note}") for note in record["notes"]]
    steps = [(f"taskprune prune {source.reference} --ratio 0.3", "remove 30 % of the parameters")]
    return [*parts, next_steps(steps)]


def _whose(tasks: Sequence[str], known: Sequence[str]) -> str:
    """Say who shares something."""
    if len(tasks) == len(known) > 1:
        return "all"
    return ", ".join(tasks) or "none"


def _module_table(record: Mapping[str, Any]) -> Any:
    from taskprune.terminal import text_table

    costs = record["costs"]
    rows = [row for row in record["modules"] if row["params"] or row["macs"]]
    shown = sorted(rows, key=lambda r: r["params"] + r["macs"], reverse=True)[:ROWS]
    return text_table(
        "Cost by module",
        ("module", "parameters", "", "multiply-adds", "", "tasks"),
        (
            (
                row["module"],
                f"{row['params']:,}",
                _share(row["params"], costs["params"]),
                f"{row['macs']:,}",
                _share(row["macs"], costs["macs"]),
                _whose(row["tasks"], record["tasks"]),
            )
            for row in rows
            if row in shown
        ),
        words=("module", "tasks"),
        caption=_more(len(rows)),
    )


def _group_table(record: Mapping[str, Any]) -> Any:
    from taskprune.terminal import text_table

    return text_table(
        "Groups that can shrink",
        ("group", "channels", "parameters a channel", "tasks"),
        (
            (
                group["name"],
                f"{group['channels']:,}" + (f" by {group['step']}" if group["step"] > 1 else ""),
                f"{group['parameters_a_channel']:,}",
                _whose(group["tasks"], record["tasks"]),
            )
            for group in record["groups"][:ROWS]
        ),
        words=("group", "tasks"),
        caption=_more(len(record["groups"])),
    )


def _frozen_parts(record: Mapping[str, Any]) -> list[Any]:
    from rich.text import Text

    from taskprune.report.record import REASONS
    from taskprune.terminal import text_table

    parts: list[Any] = []
    frozen = sorted(record["frozen"], key=lambda group: group["kind"] == "interface")
    if frozen:
        table = text_table(
            "Frozen, and why",
            ("group", "channels", "why", "where"),
            (
                (
                    group["name"],
                    f"{group['n_channels']:,}",
                    f"{REASONS[group['kind']]}: {group['detail']}",
                    group["source"] or group["module"],
                )
                for group in frozen[:ROWS]
            ),
            words=("group", "why", "where"),
            caption=_more(len(frozen)),
        )
        parts.append(table)
    if record["untraced"]:
        names = ", ".join(record["untraced"][:4]) + (" …" if record["untraced"][4:] else "")
        parts.append(Text(f"{len(record['untraced'])} parameters are never run: {names}."))
    return parts


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _more(n: int) -> str | None:
    return f"{n - ROWS} more with --json" if n > ROWS else None
