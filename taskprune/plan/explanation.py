"""What a plan does to one module, and why: the answer of :meth:`PruningPlan.explain`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from taskprune.cost.names import MEASURED, amount, cost_label, kind_of
from taskprune.errors import InputError
from taskprune.plan.decisions import AttributeChange, GroupDecision, KeptAttribute, notes_on
from taskprune.plan.rationale import FrozenDecision, GroupRationale
from taskprune.plan.tables import ranges_text
from taskprune.terminal import plain_text


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
        attributes: Integers stored in its modules that change.
        kept_attributes: Integers stored there that equal a size which changes, and that stay.
    """

    subject: str
    tensors: tuple[TensorLine, ...]
    groups: tuple[GroupLine, ...]
    frozen: tuple[FrozenDecision, ...]
    attributes: tuple[AttributeChange, ...] = ()
    kept_attributes: tuple[KeptAttribute, ...] = ()

    def to_json(self) -> str:
        """Return the explanation as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def __rich__(self) -> Group:
        return Group(Text(self.subject or "model", style="bold"), *self._sections())

    def __str__(self) -> str:
        return plain_text(self)

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
        stored = (*map(str, self.attributes), *notes_on(self.kept_attributes))
        if stored:
            yield Text("\n".join(f"  {line}" for line in stored))


def explain(
    subject: str,
    *,
    groups: Sequence[GroupDecision],
    tensors: Sequence[TensorLine],
    rationale: Sequence[GroupRationale],
    frozen: Sequence[FrozenDecision],
    attributes: Sequence[AttributeChange],
    kept_attributes: Sequence[KeptAttribute],
) -> Explanation:
    """Gather what a plan with these parts does to a module, a tensor or a group, and why.

    Raises:
        InputError: The plan knows nothing of that name; suggests close ones.
    """
    names = {line.name for line in tensors if _within(line.name, subject)}
    holders = {*(a.module for a in attributes), *(a.module for a in kept_attributes)}
    stored = {module for module in holders if _within(module, subject)}
    if names or stored:
        about = [d for d in groups if names & {*d.made_by, *d.read_by}]
        stays = [f for f in frozen if names & set(f.members)]
    else:
        about = [d for d in groups if d.name == subject]
        stays = [f for f in frozen if f.name == subject and not about]
        names = {n for d in about for n in (*d.made_by, *d.read_by)}
        names |= {n for f in stays for n in f.members}
    if not (names or stored):
        modules = {line.name.rpartition(".")[0] for line in tensors} - {""}
        known = {*modules, *(line.name for line in tensors), *(d.name for d in groups)}
        raise InputError(_unknown(subject, sorted(known)))
    stored |= {name.rpartition(".")[0] for name in names}
    lines = [_group_line(decision, names, rationale) for decision in about]
    return Explanation(
        subject=subject,
        tensors=tuple(line for line in tensors if line.name in names),
        groups=tuple(sorted(lines, key=lambda line: line.role != "makes")),
        frozen=tuple(stays),
        attributes=tuple(a for a in attributes if a.module in stored),
        kept_attributes=tuple(a for a in kept_attributes if a.module in stored),
    )


def _within(name: str, subject: str) -> bool:
    return not subject or name == subject or name.startswith(f"{subject}.")


def _group_line(
    decision: GroupDecision, names: set[str], rationale: Iterable[GroupRationale]
) -> GroupLine:
    return GroupLine(
        name=decision.name,
        role="makes" if names & set(decision.made_by) else "reads",
        n_channels=decision.n_channels,
        drop=decision.drop,
        tasks=decision.tasks,
        rounds=tuple(r for r in rationale if r.group == decision.name),
        modality=decision.modality,
    )


def _unknown(subject: str, known: list[str]) -> str:
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
        if why.n_free:
            yield f"{why.n_free} of them cost nothing: dead, constant or linear in others"
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
