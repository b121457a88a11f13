"""One pass over the teacher with gradients: who reads, how often, and which rows count.

A row of a reader's output, a position or a token, counts by what the tasks' losses say of it: by
the squared norm of each task's gradient there, each task scaled to a mean of 1. So a car of forty
positions is not outvoted by the road around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.weak import WeakIdKeyDictionary

from taskprune.compensation.correspondence import Correspondence
from taskprune.compensation.listening import Read, ReadingMode
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.distributed import gathered, summed
from taskprune.plan.plan import KeptEntries


@dataclass(eq=False, slots=True)
class Sample:
    """Rows of one call that stand for all of them.

    Attributes:
        rows: Numbers. Shape ``[blocks, S]``.
        factor: How many rows each stands for. Shape ``[blocks, S]``.
        loudness: Squared norm of each task's gradient there. Shape ``[T, blocks, S]``.
    """

    rows: Tensor
    factor: Tensor
    loudness: Tensor


@dataclass(eq=False)
class Surveyed:
    """What is known of one reader.

    Attributes:
        name: The parameter.
        kept: What it keeps of the dim that reads.
        calls: How often a forward reads through it at most.
        corresponds: Whether the rows of teacher and student are the same positions.
        bias: Name of the bias that is always added.
        norm: Name of the running mean of the norm that takes all of its output, and alone.
        refused: Why it is left as sliced; empty if it is not.
        samples: ``{number of the batch: one for each call}``.
    """

    name: str
    kept: KeptEntries
    calls: int = 0
    corresponds: bool = True
    bias: str | None = None
    norm: str | None = None
    refused: str = ""
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    consumers: set[str] = field(default_factory=set)
    biases: set[str | None] = field(default_factory=set)
    total: Tensor | None = None
    n_rows: Tensor | None = None

    def weights(self, sample: Sample, floor: float, stakes: Tensor | None) -> Tensor:
        """Return what each row of a sample counts. Shape ``[blocks, S]``, float64."""
        assert self.total is not None and self.n_rows is not None
        mean = self.total / self.n_rows.clamp_min(1)
        loudness = sample.loudness.double()
        scaled = loudness / mean.where(mean > 0, torch.inf)[:, None, None]
        if stakes is not None:
            scaled = scaled * stakes[:, None, None]
        return (floor + scaled.sum(0)) * sample.factor


class Survey:
    """Watches the teacher; see :class:`~taskprune.importance.calibration.Watch`.

    Args:
        model: The teacher, with the plan's replacements.
        readers: What each reader keeps, by the name of its parameter.
        n_tasks: How many tasks there are.
        n_rows: Rows to remember of each call at most.
        entries: Entries of the input to remember of each call at most.
    """

    def __init__(
        self,
        model: nn.Module,
        readers: Mapping[str, KeptEntries],
        n_tasks: int,
        *,
        n_rows: int,
        entries: int,
        floor: float,
        power: float,
    ) -> None:
        self.readers = {name: Surveyed(name, kept) for name, kept in readers.items()}
        self.order: list[str] = []
        self.n_tasks, self.n_rows, self.entries, self.floor = n_tasks, n_rows, entries, floor
        self.power = power
        self.batch = -1
        self._parameters = dict(model.named_parameters())
        self._means = {id(b): n for n, b in model.named_buffers()}
        self._reads: list[tuple[Read, ...]] = []
        self._edges: list[Any] = []
        self._outputs: Any = WeakIdKeyDictionary()
        self._calls: dict[str, int] = {}

    # What the engine of scoring asks for.

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        """Listen to the forward of one batch."""
        self.batch += 1
        self._reads, self._edges, self._calls = [], [], {}
        self._outputs = WeakIdKeyDictionary()
        self._rows = Correspondence(iter(self._parameters.values()))
        read = {
            name: (self._parameters[name], r.kept.dim)
            for name, r in self.readers.items()
            if name in self._parameters
        }
        mode = ReadingMode(read, self._parameters, self)
        with mode:
            yield
        for name, function in mode.unrecognised.items():
            self.readers[name].refused = f"`{function}` takes it as well"
        for name, count in self._calls.items():
            self.readers[name].calls = max(count, self.readers[name].calls)

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Edges of the graph, in place of tensors that the model may overwrite."""
        return self._edges

    # What the function mode tells.

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.listening.Listener`."""
        for read in reads:
            reader = self.readers[read.name]
            if read.name not in self._calls and reader.calls == 0 and read.name not in self.order:
                self.order.append(read.name)
            self._calls[read.name] = self._calls.get(read.name, 0) + 1
            reader.corresponds &= self._rows.holds(read.x)
            reader.biases.add(read.bias)
        if not reads[0].geometry.by_output and reads[0].x.requires_grad:
            self._edges.append(get_gradient_edge(reads[0].x))
            self._reads.append(reads)

    def has_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.listening.Listener`."""
        assert reads[0].y is not None
        if reads[0].geometry.by_output and reads[0].y.requires_grad:
            self._edges.append(get_gradient_edge(reads[0].y))
            self._reads.append(reads)
        self._outputs[reads[0].y] = [read.name for read in reads]

    def has_called(self, function: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """See :class:`~.listening.Listener`."""
        self._rows.see(function, args, kwargs, result)
        values = (*args, *kwargs.values())
        taken = [v for value in values
                 for v in (value if isinstance(value, list | tuple) else (value,))
                 if isinstance(v, Tensor) and v in self._outputs]  # fmt: skip
        if not taken or not _holds_tensor(result):
            return
        consumer = ""
        if function is nn.functional.batch_norm and args and args[0] is taken[0]:
            given = dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training"),
                             args, strict=False)) | kwargs  # fmt: skip
            mean = given.get("running_mean")
            if mean is not None and not given.get("training", False):
                consumer = self._means.get(id(mean), "")
        for tensor in taken:
            names = self._outputs[tensor]
            for name in names:
                self.readers[name].consumers.add(consumer if len(names) == 1 else "")

    # What comes back.

    def add(self, batch: Iterator[TaskGradients]) -> None:
        """Take in the gradients of one batch and choose its rows."""
        loudness: dict[int, Tensor] = {}
        for found in batch:
            for number, gradient in enumerate(found.watched):
                if gradient is None:
                    continue
                for place, read in enumerate(self._reads[number]):
                    own = gradient if not read.geometry.by_output else read.own(gradient)
                    rows = read.geometry.loudness(own.detach()).pow(self.power)
                    key = 1000 * number + place
                    if key not in loudness:
                        loudness[key] = rows.new_zeros((self.n_tasks, *rows.shape))
                    loudness[key][found.task] += rows
        for number, reads in enumerate(self._reads):
            for place, read in enumerate(reads):
                rows = loudness.get(1000 * number + place)
                self._sample(read, rows)
        self._reads, self._edges = [], []

    def _sample(self, read: Read, loudness: Tensor | None) -> None:
        reader = self.readers[read.name]
        if loudness is None:  # no task hangs on it in this batch: every row as much as any other
            whole = read.y if read.geometry.by_output else read.x
            assert whole is not None
            own = read.own(whole) if read.geometry.by_output else whole
            loudness = read.geometry.loudness(own.detach()).new_zeros(
                (self.n_tasks, *read.geometry.loudness(own.detach()).shape)
            )
        total = loudness.double().sum((1, 2)).cpu()
        n_rows = torch.tensor(float(loudness[0].numel()), dtype=torch.float64)
        reader.total = total if reader.total is None else reader.total + total
        reader.n_rows = n_rows if reader.n_rows is None else reader.n_rows + n_rows
        sample = self._chosen(loudness, _width(read))
        reader.samples.setdefault(self.batch, []).append(sample)

    def _chosen(self, loudness: Tensor, width: int) -> Sample:
        """Take rows by how much they count: systematic sampling, the same for the same batch."""
        n_tasks, n_blocks, n_rows = loudness.shape
        most = max(64, min(self.n_rows, self.entries // max(1, width * n_blocks)))
        if n_rows <= most:
            rows = torch.arange(n_rows, device=loudness.device).expand(n_blocks, -1)
            return Sample(rows, torch.ones_like(rows, dtype=torch.float64), loudness)
        mean = loudness.double().mean((1, 2), keepdim=True)
        counts = max(self.floor, 0.02) + (loudness / mean.where(mean > 0, torch.inf)).sum(0)
        cumulated = counts.cumsum(1)
        step = cumulated[:, -1:] / most
        at = (torch.arange(most, device=loudness.device, dtype=torch.float64) + 0.5) * step
        rows = torch.searchsorted(cumulated, at).clamp_max(n_rows - 1)
        factor = step / counts.gather(1, rows)
        index = rows.expand(n_tasks, -1, -1)
        return Sample(rows, factor, loudness.gather(2, index))

    def finish(self, outputs_taken: frozenset[str] = frozenset()) -> None:
        """Decide what each reader allows, the same in all processes."""
        mine = {
            n: (r.calls, r.corresponds, r.refused, sorted(r.consumers), sorted(map(str, r.biases)))
            for n, r in self.readers.items()
        }
        everyone = gathered((self.order, mine))
        for order, _ in everyone:
            self.order += [name for name in order if name not in self.order]
        if len(everyone) > 1:
            first = everyone[0][0]
            self.order = [*first, *(n for n in self.order if n not in first)]
        for name, reader in self.readers.items():
            facts = [found[name] for _, found in everyone]
            reader.calls = max(f[0] for f in facts)
            reader.corresponds = all(f[1] for f in facts)
            reader.refused = next((f[2] for f in facts if f[2]), "")
            consumers = {c for f in facts for c in f[3]}
            biases = {b for f in facts for b in f[4]}
            if len(biases) == 1 and "None" not in biases:
                reader.bias = next(iter(biases))
            elif biases == {"None"} and len(consumers) == 1:
                reader.norm = next(iter(consumers)) or None
            zero = torch.zeros(self.n_tasks, dtype=torch.float64)
            reader.total = summed(zero if reader.total is None else reader.total)
            none = torch.zeros((), dtype=torch.float64)
            reader.n_rows = summed(none if reader.n_rows is None else reader.n_rows)
            if not reader.calls and not reader.refused:
                reader.refused = "no call that is known to read through it"


def _width(read: Read) -> int:
    shape = read.x.shape
    kernel = getattr(read.geometry, "kernel", ())
    if read.geometry.by_output and kernel:
        taps = 1
        for n in kernel:
            taps *= n
        return int(shape[-len(kernel) - 1]) * taps // read.geometry.groups  # type: ignore[attr-defined]
    return int(shape[-1] if not kernel else shape[-len(kernel) - 1])


def _holds_tensor(result: Any) -> bool:
    if isinstance(result, list | tuple):
        return any(_holds_tensor(v) for v in result)
    return isinstance(result, Tensor)
