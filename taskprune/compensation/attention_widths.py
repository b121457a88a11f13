"""Widths of attention: no weight reads channels that leave queries and keys together.

They are multiplied with each other, so what makes up for them is a map of each head's queries that
is folded into the projection which makes these (:mod:`.query_folding`). A survey beside that of the
readers sees which projections make queries and nothing else; between teacher and student the map is
found where queries meet keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from taskprune.compensation.attention_products import Product, ProductMode
from taskprune.compensation.query_folding import Met, Moments, QueryFit, fit_queries
from taskprune.importance.distributed import gathered, summed
from taskprune.plan.decisions import KeptEntries

MOST_IMAGES = 128
"""Images, or windows, of a head to look at, over all batches."""

Taken: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Queries ``[H, S, n, d]``, keys ``[H, S, m, d]``, and which matrices of a call they are."""


@dataclass(frozen=True, slots=True)
class Queries:
    """What the teacher's forwards showed of a weight that makes queries.

    Attributes:
        name: The weight.
        bias: The bias that is added; empty without.
        out_dim: The dim of the weight along which its rows lie.
        heads: The rows that make each head's queries.
        scale: What queries are multiplied by between projection and product.
        after: How many readers were known when queries met keys.
        corresponds: Whether the rows of teacher and student are the same positions.
        is_centred: Whether a softmax over keys follows, and nothing else sees the products.
        refused: Why it is left alone; empty if it is not.
    """

    name: str
    bias: str
    out_dim: int
    heads: tuple[tuple[int, ...], ...]
    scale: float
    after: int
    corresponds: bool
    is_centred: bool
    refused: str = ""

    def agreed(self, other: Queries) -> Queries:
        """Return what two forwards saw together."""
        refused = self.refused or other.refused
        fixed = [(q.bias, q.out_dim, q.heads, q.scale) for q in (self, other)]
        return replace(
            self,
            corresponds=self.corresponds and other.corresponds,
            is_centred=self.is_centred and other.is_centred,
            refused=refused if fixed[0] == fixed[1] else refused or "it differs between batches",
        )


class QuerySurvey:
    """Looks on, beside the survey of readers, while a model is scored.

    Args:
        n_tasks: How many tasks there are.
        power: Queries count by the squared norm of a task's gradient to this power.

    Attributes:
        found: Weights that make queries, by name, in the order of the forward pass.
        loudness: What each task says of each query, ``{name: {number of the batch: [T, L, n]}}``.
    """

    def __init__(self, n_tasks: int, power: float) -> None:
        self.found: dict[str, Queries] = {}
        self.loudness: dict[str, dict[int, Tensor]] = {}
        self._n_tasks, self._power = n_tasks, power
        self._heard: dict[str, Tensor] = {}
        self._number = -1
        self._totals: dict[str, Tensor] = {}

    @contextmanager
    def recording(
        self,
        parameters: Mapping[str, Tensor],
        number: int,
        n_readers: Callable[[], int],
        corresponds: Callable[[Tensor], bool],
    ) -> Iterator[None]:
        """Listen to the forward of one batch."""
        seen: dict[str, Queries] = {}
        self._number, self._heard = number, {}

        def on_product(product: Product) -> None:
            source, operands = product.source, product.operands
            if source.name in seen:
                seen[source.name] = replace(seen[source.name], refused="its products are several")
                return
            heads = tuple(tuple(head) for head in product.heads.tolist())
            corresponding = corresponds(operands.given) and corresponds(operands.keys_given)
            queries = Queries(
                *(source.name, source.bias, source.out_dim, heads, source.scale, n_readers()),
                *(corresponding, True),
            )
            seen[source.name] = queries
            shape = len(product.head_of), operands.queries.shape[-2]
            own = self.loudness.setdefault(source.name, {})
            own[number] = torch.zeros(
                self._n_tasks, *shape, dtype=torch.float32, device=operands.given.device
            )
            if operands.given.requires_grad:
                self._hear(source.name, operands.given, operands.order)

        mode = ProductMode(parameters, on_product)
        with mode:
            yield
        trail = mode.trail
        for name, queries in seen.items():
            rows = {row for head in queries.heads for row in head}
            refused = queries.refused
            if rows & trail.taken.get(name, set()):
                refused = refused or "something else takes its queries"
            if max(trail.uses[name], trail.uses[queries.bias] if queries.bias else 0) > 1:
                refused = refused or "something else takes it"
            centred = name in trail.softmaxed and name not in trail.others
            queries = replace(queries, is_centred=centred, refused=refused)
            self.found[name] = self.found.get(name, queries).agreed(queries)

    def listen(self, task: int, scale: float) -> None:
        """Take in what one task's backward said."""
        for name, rows in self._heard.items():
            if task < self._n_tasks:  # no probe's
                rows = rows / scale**2 if scale != 1 else rows
                self.loudness[name][self._number][task] = rows.pow_(self._power)
        self._heard = {}

    def finish(self) -> None:
        """Bring together what the processes saw."""
        totals = {
            name: torch.stack([_total(rows) for rows in batches.values()]).sum(0).cpu()
            for name, batches in self.loudness.items()
        }
        everyone = gathered((self.found, totals))
        agreed: dict[str, Queries] = {}
        for found, _ in everyone:
            for name, queries in found.items():
                agreed[name] = agreed.get(name, queries).agreed(queries)
        self.found = agreed
        self._totals = {
            name: torch.stack([own[name] for _, own in everyone if name in own]).sum(0)
            for name in agreed
        }

    def weights(self, name: str, number: int, floor: float) -> Tensor:
        """Return what each query of a batch counts. Shape ``[L, n]``, float64."""
        loudness = self.loudness[name][number].double()
        totals = self._totals[name].to(loudness.device)
        mean = totals[:-1] / totals[-1].clamp_min(1)
        return floor + (loudness / mean.where(mean > 0, torch.inf)[:, None, None]).sum(0)

    def _hear(self, name: str, queries: Tensor, order: tuple[int, ...] | None) -> None:
        def hear(gradient: Tensor) -> None:
            own = gradient.detach() if order is None else gradient.detach().permute(order)
            self._heard[name] = own.float().square().sum(-1).reshape(-1, own.shape[-2])

        queries.register_hook(hear)  # type: ignore[no-untyped-call]


def _total(loudness: Tensor) -> Tensor:
    """Return the sum of each task's loudness, and the number of queries."""
    sums = loudness.double().sum((1, 2))
    return torch.cat([sums, sums.new_tensor([float(loudness[0].numel())])])


@dataclass(eq=False)
class Fold:
    """What is folded into one projection.

    Attributes:
        queries: What is known of it.
        rows: Of the teacher's weight, that make each head which stays. Shape ``[H, d]``.
        keep: Which of these channels stay. Shape ``[H, d']``.
        own_rows: Of the student's weight, that make them. Shape ``[H, d']``.
        gone: Rows of the original's weight whose queries go.
        most: How many images of a head to look at in a batch at most.
        entries: How many entries of queries or keys.
        change: What the queries are multiplied by, less the identity, and below it, with a bias,
            what is added. Shape ``[H, d' or d' + 1, d']``; ``None`` before it is solved, and where
            all stays.
    """

    queries: Queries
    rows: Tensor
    keep: Tensor
    own_rows: Tensor
    gone: tuple[int, ...]
    most: int
    entries: int
    change: Tensor | None = None

    @classmethod
    def of(
        cls, queries: Queries, kept: KeptEntries | None, *, most: int, entries: int
    ) -> Fold | None:
        """Return what may be folded; ``None`` where no queries go, or heads differ in width."""
        if queries.refused or kept is None:
            return None
        place = {row: number for number, row in enumerate(kept.keep)}
        heads = [head for head in queries.heads if any(row in place for row in head)]
        columns = [[n for n, row in enumerate(head) if row in place] for head in heads]
        widths = {len(own) for own in columns}
        if len(widths) != 1 or widths == {len(heads[0])}:
            return None
        keep = torch.tensor(columns, device="cpu")
        rows = torch.tensor(heads, device="cpu")
        own = [[place[row] for row in head if row in place] for head in heads]
        gone = tuple(row for head in queries.heads for row in head if row not in place)
        own_rows = torch.tensor(own, device="cpu")
        return cls(queries, rows, keep, own_rows, gone, most, entries)

    def taken(self, product: Product, rows: Tensor) -> Taken | None:
        """Return queries and keys of some images by head; ``None`` if heads are others.

        Args:
            product: A call.
            rows: The rows of the weight that make each head. Shape ``[H, d]``.
        """
        number = {tuple(head): n for n, head in enumerate(product.heads.tolist())}
        order = [number.get(tuple(head)) for head in rows.tolist()]
        where = [(product.head_of == n).nonzero()[:, 0] for n in order if n is not None]
        if len(where) < len(order) or len({len(own) for own in where}) != 1 or not len(where[0]):
            return None
        slots = torch.stack(where)
        size = slots.shape[1]
        queries, keys = product.operands.queries.detach(), product.operands.keys.detach()
        # The same number in both networks, so by the teacher's width.
        each = self.rows.numel() * max(queries.shape[-2], keys.shape[-2])
        most = max(1, min(size, self.most, self.entries // each))
        step = torch.linspace(0, size - 1, most, dtype=torch.float64, device="cpu")
        slots = slots[:, step.round().long()]
        on_device = slots.to(queries.device)
        lead = queries.shape[:-2]
        at = torch.unravel_index(on_device, lead) if lead else ()
        if not lead:
            return queries[None, None].clone(), keys[None, None].clone(), on_device
        return queries[at], keys[at], on_device

    def met(self, taken: Taken | None, product: Product | None, counts: Tensor) -> Met | None:
        """Return queries and keys of both networks; ``None`` if they do not pair up.

        Args:
            taken: The teacher's.
            product: The student's call; ``None``: the teacher's channels that stay stand for it.
            counts: What each of the teacher's queries counts. Shape ``[L, n]``.
        """
        own = None if product is None else self.taken(product, self.own_rows)
        if taken is None or (product is not None and own is None):
            return None
        queries, keys, at = taken
        if own is None:
            return Met(queries.double(), keys.double(), None, None, counts[at])
        pairs = zip(taken, own, strict=True)
        if any(theirs.shape[:3] != mine.shape[:3] for theirs, mine in pairs):
            return None
        return Met(queries.double(), keys.double(), own[0].double(), own[1].double(), counts[at])

    def moments(self, met: Met) -> tuple[Moments, Moments]:
        """Return what to fit on and what to choose by."""
        fitted, held = (
            Moments.of(
                part,
                self.keep.to(met.queries.device),
                centred=self.queries.is_centred,
                shifts=bool(self.queries.bias),
            )
            for part in met.parts()
        )
        return fitted, held

    def solved(self, parts: list[tuple[Moments, Moments]], like: Tensor) -> QueryFit:
        """Find the change, from the moments of all batches; the same in all processes."""
        n_heads, width = self.keep.shape
        none = Moments.none(like, n_heads, width + bool(self.queries.bias), width)
        fitted = Moments.joined([none, *(part for part, _ in parts)])
        held = Moments.joined([none, *(part for _, part in parts)])
        found = fit_queries(fitted, held)
        self.change = None if found.is_nothing else found.change
        return found

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the student's weight and bias with the change in them, in float64."""
        assert self.change is not None
        width = self.keep.shape[1]
        d = self.change.to(weight.device)
        index = self.own_rows.to(weight.device)
        whole = weight.double().movedim(self.queries.out_dim, 0).clone()
        flat = whole.flatten(1)
        flat[index] = flat[index] + d[:, :width].mT @ flat[index]
        made = flat.reshape(whole.shape).movedim(0, self.queries.out_dim)
        if bias is None:
            return made, None
        shifted = bias.double().clone()
        more = (shifted[index][:, None] @ d[:, :width])[:, 0] + d[:, width] / self.queries.scale
        shifted[index] = shifted[index] + more
        return made, shifted

    def applied(self, product: Product) -> Tensor | None:
        """Return the queries in flight as the folded weight would make them."""
        if self.change is None:
            return None
        number = {tuple(head): n for n, head in enumerate(self.own_rows.tolist())}
        order = torch.tensor(
            [number[tuple(head)] for head in product.heads.tolist()], device=product.head_of.device
        )
        queries = product.operands.queries
        width = queries.shape[-1]
        heads = order[product.head_of].to(queries.device)
        change = self.change.to(queries.device)[heads].reshape(*queries.shape[:-2], -1, width)
        wide = queries.double()
        more = wide @ change[..., :width, :] + change[..., width:, :].sum(-2, keepdim=True)
        return (wide + more).to(queries.dtype)


def foldable(
    survey: QuerySurvey,
    plan: Mapping[tuple[str, int], KeptEntries],
    n_batches: int,
    entries: int,
) -> dict[str, Fold]:
    """Return what may be folded, by name, in the order of the forward pass.

    Args:
        survey: What was seen.
        plan: What each parameter keeps, by name and dim.
        n_batches: How many batches this process has.
        entries: How many entries of queries or keys to look at in a batch.
    """
    most = max(1, MOST_IMAGES // max(1, n_batches))
    found = {}
    for name, queries in survey.found.items():
        fold = Fold.of(queries, plan.get((name, queries.out_dim)), most=most, entries=entries)
        if fold is not None:
            found[name] = fold
    return found


def agree(flag: bool) -> bool:
    """Return whether all processes say so."""
    return not bool(summed(torch.tensor(float(not flag), dtype=torch.float64, device="cpu")))
