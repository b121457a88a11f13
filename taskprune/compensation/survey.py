"""One pass over the teacher with gradients: who reads, how often, and which rows count.

A row of a reader's output, a position or a token, counts by what the tasks' losses say of it: by
the norm of each task's gradient there, each task scaled to a mean of 1. So a car of forty positions
is not outvoted by the road around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.weak import WeakIdKeyDictionary

from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.correspondence import Correspondence
from taskprune.compensation.reading_calls import Read, ReadingMode
from taskprune.compensation.reads import Geometry
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.distributed import gathered, summed
from taskprune.plan.decisions import KeptEntries

LEAST_ROWS = 64
"""Rows that are looked at however wide they are."""


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Rows of one call that stand for all of them.

    Attributes:
        rows: Numbers, ascending. Shape ``[blocks, S]``.
        factor: How many rows each stands for. Shape ``[blocks, S]``, float64.
        loudness: What each task says of it. Shape ``[T, blocks, S]``.
    """

    rows: Tensor
    factor: Tensor
    loudness: Tensor


@dataclass
class Reader:
    """What the teacher's forwards showed of a parameter that reads; the same in all processes.

    Attributes:
        name: The parameter.
        kept: What it keeps of the dim that reads; ``None`` if nothing was seen to read through it.
        geometry: How it reads.
        calls: How often a forward reads through it at most.
        corresponds: Whether the rows of teacher and student are the same positions.
        biases: Names of the biases that are added; ``""`` for a call without one.
        consumers: Names of the running means of the norms that take its output; ``""`` for
            anything else that takes it.
        refused: Why it is left as sliced; empty if it is not.
    """

    name: str
    kept: KeptEntries | None = None
    geometry: Geometry | None = None
    calls: int = 0
    corresponds: bool = True
    biases: set[str] = field(default_factory=set)
    consumers: set[str] = field(default_factory=set)
    refused: str = ""

    @property
    def bias(self) -> str:
        """Name of the bias that every call adds; empty without."""
        return next(iter(self.biases)) if len(self.biases) == 1 else ""

    @property
    def norm(self) -> str:
        """Name of the running mean of the norm that takes all it makes, and alone; or empty."""
        no_bias = self.biases == {""}
        return next(iter(self.consumers)) if no_bias and len(self.consumers) == 1 else ""

    def agreed(self, others: Sequence[Reader]) -> Reader:
        """Return what all processes saw together."""
        seen = [other for other in others if other.kept is not None]
        return Reader(
            self.name,
            next((o.kept for o in seen), None),
            next((o.geometry for o in seen), None),
            max(o.calls for o in others),
            all(o.corresponds for o in others),
            set().union(*(o.biases for o in others)),
            set().union(*(o.consumers for o in others)),
            next((o.refused for o in others if o.refused), ""),
        )


class Survey:
    """Watches the teacher; a :class:`~taskprune.importance.calibration.Watch`.

    Args:
        model: The teacher, with the plan's replacements.
        candidates: What each parameter that may read keeps, by name and dim.
        n_tasks: How many tasks there are.
        settings: How many rows to remember, and what they count.

    Attributes:
        readers: By name, in the order of the forward pass.
        samples: ``{reader: {number of the batch: one for each call}}``.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Mapping[int, KeptEntries]],
        n_tasks: int,
        settings: CompensationSettings,
    ) -> None:
        self.candidates, self.n_tasks, self.settings = candidates, n_tasks, settings
        self.readers: dict[str, Reader] = {}
        self.samples: dict[str, dict[int, list[Sample]]] = {}
        self.batch = -1
        self._parameters = dict(model.named_parameters())
        self._means = {id(buffer): name for name, buffer in model.named_buffers()}
        self._totals: dict[str, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        self._reads: list[tuple[Read, ...]] = []
        self._edges: list[Any] = []
        self._calls: dict[str, int] = {}
        self._made: Any = WeakIdKeyDictionary()
        self._rows = Correspondence(iter(self._parameters.values()))

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:  # noqa: ARG002 - see Watch
        """Listen to the forward of one batch."""
        self.batch += 1
        self._begin()
        mode = ReadingMode(self._parameters, self.candidates, self)
        with mode:
            yield
        for name, function in mode.unrecognised.items():
            self._reader(name).refused = f"`{function}` takes it as well"
        for name, count in self._calls.items():
            self.readers[name].calls = max(count, self.readers[name].calls)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Edges of the graph, in place of tensors that the model may overwrite."""
        return self._edges

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        for read in reads:
            reader = self._reader(read.name)
            reader.kept = self.candidates[read.name][read.geometry.dim]
            reader.geometry = read.geometry
            reader.corresponds &= self._rows.holds(read.x)
            reader.biases.add(read.bias or "")
            self._calls[read.name] = self._calls.get(read.name, 0) + 1
        if not reads[0].geometry.by_output:
            self._follow(reads, reads[0].x)

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        made = reads[0].y
        assert made is not None
        if reads[0].geometry.by_output:
            self._follow(reads, made)
        self._made[made] = tuple(read.name for read in reads)

    def has_called(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """See :class:`~.reading_calls.Listener`."""
        self._rows.see(function, args, kwargs, result)
        if not _holds_tensor(result):
            return
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and tensor in self._made:
                    names = self._made[tensor]
                    norm = self._norm(function, args, kwargs) if len(names) == 1 else ""
                    for name in names:
                        self.readers[name].consumers.add(norm)

    def add(self, batch: Iterator[TaskGradients]) -> None:
        """Take in the gradients of one batch and choose its rows."""
        reads = [(n, read) for n, group in enumerate(self._reads) for read in group]
        loudness: list[list[Tensor | None]] = [[None] * self.n_tasks for _ in reads]
        for found in batch:
            for place, (number, read) in enumerate(reads):
                gradient = found.watched[number]
                if gradient is not None:
                    own = read.own(gradient) if read.geometry.by_output else gradient
                    rows = read.geometry.loudness(own.detach())
                    loudness[place][found.task] = rows.pow_(self.settings.power)
        for (_, read), by_task in zip(reads, loudness, strict=True):
            whole = read.y if read.geometry.by_output else read.x
            assert whole is not None
            known = next((rows for rows in by_task if rows is not None), None)
            if known is None:  # no task hangs on it in this batch
                own = read.own(whole) if read.geometry.by_output else whole
                known = torch.zeros_like(read.geometry.loudness(own.detach()))
            quiet = torch.zeros_like(known)
            self._sample(read, torch.stack([quiet if r is None else r for r in by_task]))
        self._begin()

    def finish(self) -> None:
        """Bring together what the processes saw."""
        everyone = gathered((self.readers, {n: t.cpu() for n, t in self._totals.items()}))
        names = list(dict.fromkeys(name for readers, _ in everyone for name in readers))
        self.readers = {
            name: Reader(name).agreed([readers.get(name, Reader(name)) for readers, _ in everyone])
            for name in names
        }
        none = torch.zeros(self.n_tasks + 1, dtype=torch.float64)
        self._totals = {name: summed(self._totals.get(name, none)) for name in names}

    def weights(self, name: str, sample: Sample) -> Tensor:
        """Return what each row of a sample counts. Shape ``[blocks, S]``, float64."""
        totals = self._totals[name].to(sample.factor.device)
        mean = totals[:-1] / totals[-1].clamp_min(1)
        heard = sample.loudness.double() / mean.where(mean > 0, torch.inf)[:, None, None]
        return (self.settings.floor + heard.sum(0)) * sample.factor

    def _reader(self, name: str) -> Reader:
        return self.readers.setdefault(name, Reader(name))

    def _follow(self, reads: tuple[Read, ...], tensor: Tensor) -> None:
        if tensor.requires_grad:
            self._edges.append(get_gradient_edge(tensor))
            self._reads.append(reads)
        else:
            for read in reads:
                self._reader(read.name).refused = "what it reads does not hang on any weight"

    def _norm(self, function: Any, args: tuple[Any, ...], kwargs: Any) -> str:
        """Return the name of the running mean if this is a norm that uses one."""
        if function is not nn.functional.batch_norm:
            return ""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        given = dict(zip(names, args, strict=False)) | kwargs
        return "" if given.get("training") else self._means.get(id(given["running_mean"]), "")

    def _sample(self, read: Read, loudness: Tensor) -> None:
        """Take rows by how much they count: systematic sampling, the same for the same batch."""
        n_tasks, n_blocks, n_rows = loudness.shape
        totals = loudness.new_empty(n_tasks + 1, dtype=torch.float64)
        totals[:-1] = loudness.double().sum((1, 2))
        totals[-1] = n_blocks * n_rows
        known = self._totals.get(read.name)
        self._totals[read.name] = totals if known is None else known + totals
        most = max(LEAST_ROWS, min(self.settings.rows, self.settings.entries // _width(read)))
        if n_rows <= most:
            rows = torch.arange(n_rows, device=loudness.device).expand(n_blocks, -1)
            sample = Sample(rows, torch.ones_like(rows, dtype=torch.float64), loudness)
        else:
            mean = (totals[:-1] / totals[-1])[:, None, None]
            # No row stands for more than a hundred times as many as another.
            counts = (loudness / mean.where(mean > 0, torch.inf)).sum(0).clamp_min(0.02)
            cumulated = counts.cumsum(1)
            step = cumulated[:, -1:] / most
            at = (torch.arange(most, device=loudness.device, dtype=torch.float64) + 0.5) * step
            rows = torch.searchsorted(cumulated, at).clamp_max(n_rows - 1)
            chosen = loudness.gather(2, rows.expand(n_tasks, -1, -1))
            sample = Sample(rows, step / counts.gather(1, rows), chosen)
        self.samples.setdefault(read.name, {}).setdefault(self.batch, []).append(sample)


def _width(read: Read) -> int:
    """Return how many entries a row of the input has, over all blocks."""
    kernel = getattr(read.geometry, "kernel", ())
    channels = read.x.shape[-len(kernel) - 1]
    return int(channels * (prod(kernel) if read.geometry.by_output else 1)) or 1


def _holds_tensor(result: Any) -> bool:
    if isinstance(result, list | tuple):
        return any(_holds_tensor(value) for value in result)
    return isinstance(result, Tensor)
