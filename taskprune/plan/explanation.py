"""What a plan does to one module, and why: the answer of :meth:`PruningPlan.explain`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from taskprune.cost.names import MEASURED, amount, cost_label, kind_of
from taskprune.errors import InputError
from taskprune.plan.rationale import FrozenDecision, GroupRationale
from taskprune.plan.tables import WIDTH, ranges_text

if TYPE_CHECKING:
    from taskprune.plan.plan import GroupDecision, PruningPlan


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One parameter or buffer and its shapes before and after."""

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupLine:
    """What happens to one coupling group that the module takes part in.

    Attributes:
        name: The group.
        role: ``"makes"`` where the module computes the channels, else ``"reads"``.
        n_channels: How many there are.
        drop: Those that go.
        tasks: Tasks that the channels can reach.
        rounds: Why, for each round of solving; empty for a plan that was not solved for.
        modality: The modality they belong to, or ``"fusion"``; empty where none were declared.
    """

    name: str
    role: str
    n_channels: int
    drop: tuple[int, ...]
    tasks: tuple[str, ...]
    rounds: tuple[GroupRationale, ...]
    modality: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why one module, tensor or group ends up the size it does. Print it, or take the fields.

    Attributes:
        subject: What was asked for.
        tensors: Its parameters and buffers.
        groups: The prunable groups they belong to, those it makes first.
        frozen: The frozen groups they belong to.
    """

    subject: str
    tensors: tuple[TensorLine, ...]
    groups: tuple[GroupLine, ...]
    frozen: tuple[FrozenDecision, ...]

    def to_json(self) -> str:
        """Return the explanation as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def __rich__(self) -> Group:
        return Group(Text(f"{self.subject}", style="bold"), *self._sections())

    def __str__(self) -> str:
        console = Console(width=WIDTH, color_system=None, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()

    def _sections(self) -> Iterator[Table | Text]:
        shapes = Table(show_header=False, box=None, pad_edge=False)
        for line in self.tensors:
            arrow = "" if line.before == line.after else f"-> {list(line.after)}"
            shapes.add_row(f"  {line.name}", str(list(line.before)), arrow)
        yield shapes
        for group in self.groups:
            yield Text("\n".join(_told(group)))
        for frozen in self.frozen:
            yield Text("\n".join(_told_frozen(frozen)))


def explain(plan: PruningPlan, subject: str) -> Explanation:
    """Gather what ``plan`` does to a module, a tensor or a group, and why.

    Args:
        plan: The plan.
        subject: Path of a module, name of a parameter or buffer, or name of a group.

    Raises:
        InputError: The plan knows nothing of that name; suggests close ones.
    """
    decisions = {decision.name: decision for decision in plan.groups}
    frozen = {group.name: group for group in plan.frozen}
    tensors = _tensors_of(plan.shapes, subject)
    if tensors:
        about = [d for d in plan.groups if tensors & {*d.made_by, *d.read_by}]
        stays = [f for f in plan.frozen if tensors & set(f.members)]
    elif subject in decisions:
        about, stays = [decisions[subject]], []
        tensors = {*about[0].made_by, *about[0].read_by}
    elif subject in frozen:
        about, stays = [], [frozen[subject]]
        tensors = set(stays[0].members)
    else:
        raise InputError(_unknown(plan, subject))
    lines = [_group_line(plan, decision, tensors) for decision in about]
    after = plan.pruned_shapes
    return Explanation(
        subject=subject,
        tensors=tuple(
            TensorLine(name, tuple(shape), after[name])
            for name, shape in plan.shapes.items()
            if name in tensors
        ),
        groups=tuple(sorted(lines, key=lambda line: line.role != "makes")),
        frozen=tuple(stays),
    )


def _tensors_of(names: Iterable[str], subject: str) -> set[str]:
    prefix = f"{subject}."
    return {name for name in names if name == subject or name.startswith(prefix)}


def _group_line(plan: PruningPlan, decision: GroupDecision, tensors: set[str]) -> GroupLine:
    return GroupLine(
        name=decision.name,
        role="makes" if tensors & set(decision.made_by) else "reads",
        n_channels=decision.n_channels,
        drop=decision.drop,
        tasks=decision.tasks,
        rounds=tuple(r for r in plan.rationale if r.group == decision.name),
        modality=decision.modality,
    )


def _unknown(plan: PruningPlan, subject: str) -> str:
    modules = {name.rpartition(".")[0] for name in plan.shapes} - {""}
    known = sorted({*modules, *plan.shapes, *(d.name for d in plan.groups)})
    close = difflib.get_close_matches(subject, known, n=3)
    hint = f" Did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ""
    return (
        "Expected the path of a module with parameters, the name of a parameter or buffer, or the "
        f"name of a coupling group (`print(plan)` lists them). Found `{subject}`.{hint}"
    )


def _told(group: GroupLine) -> Iterator[str]:
    tasks = f", reaching {', '.join(group.tasks)}" if group.tasks else ""
    of = f" of {group.modality}" if group.modality else ""
    yield (
        f"  {group.role} `{group.name}`: {len(group.drop)} of {group.n_channels} channels{of} go"
        f"{tasks}"
    )
    if group.drop:
        yield f"    dropped: {ranges_text(group.drop)}"
    for number, why in enumerate(group.rounds, 1):
        lead = f"round {number}: " if len(group.rounds) > 1 else ""
        yield from (f"    {lead}{line}" for line in reason_lines(why))


def reason_lines(why: GroupRationale) -> Iterator[str]:
    """Tell in sentences why a group loses what it loses in one round of solving."""
    if why.n_dropped:
        shares = ", ".join(f"{s.task} {_percent(s.dropped, s.total)}" for s in why.shares)
        yield f"share of the group's {why.criterion} score that goes: {shares}"
        lost, total = why.conflict
        if total:
            yield f"conflict between tasks: {_percent(lost, total)} of the group's goes"
        saved = ", ".join(
            f"{_saved(s.cost, s.amount)} ({_percent(s.amount, s.original)})" for s in why.savings
        )
        yield f"saves {saved}, all else as planned"
        yield (
            f"highest score that goes {why.highest_dropped:.3g}, lowest that stays "
            f"{why.lowest_kept:.3g}"
        )
    else:
        yield f"all stay: the lowest score is {why.lowest_kept:.3g}"
    if why.held_by:
        yield f"no more can go: held by `{why.held_by}`"


def _saved(cost: str, value: int) -> str:
    """Write a saving in the units of the plan, which counts multiply-adds of the traced batch."""
    if cost in MEASURED:
        return f"{amount(cost, value)} of {cost_label(cost)}"
    return f"{amount(cost, value)}{' a batch' if kind_of(cost) == 'macs' else ''}"


def _told_frozen(group: FrozenDecision) -> Iterator[str]:
    where = ", ".join(part for part in (group.operator, group.module, group.source) if part)
    yield f"  frozen `{group.name}`: all {group.n_channels} channels stay"
    yield f"    {group.detail}{f' ({where})' if where else ''}"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"
