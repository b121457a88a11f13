"""One pass over the teacher with gradients: who reads, how often, and which rows count.

A row of a reader's output, a position or a token, counts by what the tasks' losses say of it: by
the norm of each task's gradient there, each task scaled to a mean of 1. So a car of forty positions
is not outvoted by the road around it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from taskprune.calling.forward import Forward
from taskprune.calling.task import Task
from taskprune.calling.wrappers import bare, uncompiled
from taskprune.compensation.attention_widths import QuerySurvey
from taskprune.compensation.compensation_settings import CompensationSettings
from taskprune.compensation.correspondence import Correspondence
from taskprune.compensation.picks import located
from taskprune.compensation.reading_calls import Read, ReadingMode, has_tensor
from taskprune.compensation.reads import Geometry
from taskprune.compensation.row_samples import RowSamples
from taskprune.coupling.groups import CouplingGroups
from taskprune.importance.backwards import TaskGradients
from taskprune.importance.calibration import for_each_batch
from taskprune.importance.distributed import gathered
from taskprune.importance.projections import Projection
from taskprune.importance.scores import Evidence
from taskprune.replace import ModuleReplacement, replaced_modules

BATCHES_KEPT = 8
"""How many batches, of each loader, are kept to compensate on."""


def dims_read(groups: CouplingGroups) -> dict[str, set[int]]:
    """Return the dims along which parameters read channels, by name."""
    dims: dict[str, set[int]] = {}
    for member in (member for group in groups for member in group.members):
        if not member.produces:
            dims.setdefault(member.name, set()).add(member.dim)
    return dims


@dataclass
class Reader:
    """What the teacher's forwards showed of a parameter that reads; the same in all processes.

    Attributes:
        name: The parameter, or ``stack[3]`` for a matrix that is picked out of it.
        geometry: How it reads; ``None`` if nothing was seen to read through it.
        calls: How often a forward reads through it at most.
        corresponds: Whether the rows of teacher and student are the same positions.
        biases: Names of the biases that are added; ``""`` for a call without one.
        consumers: Names of the running means of the norms that take its output; ``""`` for
            anything else that takes it.
        refused: Why it is left as sliced; empty if it is not.
        shifts_alone: Whether what may take its shift is nobody else's; known at the end.
    """

    name: str
    geometry: Geometry | None = None
    calls: int = 0
    corresponds: bool = True
    biases: set[str] = field(default_factory=set)
    consumers: set[str] = field(default_factory=set)
    refused: str = ""
    shifts_alone: bool = False

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
        return Reader(
            self.name,
            min(
                (o.geometry for o in others if o.geometry is not None),
                key=lambda geometry: geometry.by_output,
                default=None,
            ),
            max(o.calls for o in others),
            all(o.corresponds for o in others),
            set().union(*(o.biases for o in others)),
            set().union(*(o.consumers for o in others)),
            next((o.refused for o in others if o.refused), ""),
        )


class Survey:
    """Looks on while a model is scored; a :class:`~taskprune.importance.Watch`.

    Args:
        dims: For each parameter that may read channels, the dims along which it does.
        tasks: Whose losses say which rows count.
        forward: ``(model, batch) -> outputs``.
        settings: How many rows to remember, and what they count.
        most_batches: How many batches to look at and keep; ``None``: all.
        on_read: Called with each read and the parameter that is read through, of these batches.

    Attributes:
        readers: By name, in the order of the forward pass.
        samples: Rows of each reader's calls.
        batches: Those that were looked at.
        queries: What was seen of weights that make queries.
    """

    def __init__(
        self,
        dims: Mapping[str, Container[int]],
        tasks: Mapping[str, Task],
        *,
        forward: Forward,
        settings: CompensationSettings = CompensationSettings(),  # noqa: B008 - frozen
        most_batches: int | None = None,
        on_read: Callable[[Read, Tensor], None] | None = None,
    ) -> None:
        self.dims, self.tasks, self.settings = dims, tasks, settings
        self.forward, self.most_batches, self.on_read = forward, most_batches, on_read
        self.readers: dict[str, Reader] = {}
        self.samples = RowSamples(len(tasks), settings)
        self.batches: list[Any] = []
        self.queries = QuerySurvey(len(tasks), settings.power)
        self._elsewhere: set[str] = set()
        self._is_finished = False

    def look(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        replacements: tuple[ModuleReplacement, ...] = (),
    ) -> None:
        """Run the batches for this alone, where nobody scores on them.

        Args:
            model: The model; left as it was.
            batches: Calibration batches.
            replacements: Of modules whose inner parts read.

        Raises:
            InputError, TraceError, LossError: See
                :func:`~taskprune.importance.calibration.for_each_batch`.
        """
        model = bare(model)
        evidence = Evidence(tasks=self.tasks, batches=batches, forward=self.forward, watch=self)
        with uncompiled(model), replaced_modules(model, replacements):
            parameters = dict(model.named_parameters())
            readers = {name: parameters[name] for name in self.dims if name in parameters}
            for_each_batch(model, readers, evidence, _go_through)

    def wants(self, tasks: Mapping[str, Task]) -> bool:
        """Return whether these are the losses that rows are to count by."""
        if self.most_batches is not None and len(self.batches) >= self.most_batches:
            return False
        return list(tasks) == list(self.tasks) and all(
            tasks[name].loss is own.loss
            or (isinstance(own.loss, Projection) and isinstance(tasks[name].loss, Projection))
            for name, own in self.tasks.items()
        )

    @contextmanager
    def recording(self, model: nn.Module, batch: Any) -> Iterator[None]:
        """Listen to the forward of one batch."""
        self.batches.append(batch)
        self._reads: list[tuple[Read, torch.device]] = []
        self._loudness: list[list[Tensor | None]] = []
        self._heard: list[Tensor | None] = []
        self._calls: dict[str, int] = {}
        self._made: Any = WeakIdKeyDictionary()
        self._rows = Correspondence(model.parameters())
        self._means = {id(buffer): name for name, buffer in model.named_buffers()}
        self._parameters = parameters = dict(model.named_parameters())
        dims = {n: d for n, d in self.dims.items() if n in parameters and parameters[n].ndim > 1}
        mode = ReadingMode(parameters, dims, self)
        queries = self.queries.recording(
            parameters, len(self.batches) - 1, lambda: len(self.readers), self._rows.holds
        )
        with mode, queries:
            yield
        self._parameters = {}
        for name, function in mode.unrecognised.items():
            self._reader(name).refused = f"`{function}` takes it as well"
        self._elsewhere |= mode.elsewhere
        for name, count in self._calls.items():
            self.readers[name].calls = max(count, self.readers[name].calls)

    def listening(self, batch: Iterator[TaskGradients]) -> Iterator[TaskGradients]:
        """Take in the gradients of one batch, task by task, and choose its rows."""
        for found in batch:
            for place, rows in enumerate(self._heard):
                if rows is not None and found.task < len(self.tasks):  # no probe's
                    rows = rows / found.scale**2 if found.scale != 1 else rows
                    self._loudness[place][found.task] = rows.pow_(self.settings.power)
                self._heard[place] = None
            self.queries.listen(found.task, found.scale)
            yield found
        for (read, device), by_task in zip(self._reads, self._loudness, strict=True):
            loudness = self._told(read, by_task, device)
            self.samples.take(read, loudness, len(self.batches) - 1)
        self._reads, self._loudness, self._heard = [], [], []

    def about_to_read(self, reads: tuple[Read, ...]) -> None:
        """See :class:`~.reading_calls.Listener`."""
        for read in reads:
            reader = self._reader(read.name)
            if reader.geometry is not None and reader.geometry.dim != read.geometry.dim:
                reader.refused = "it is read along more dims than one"
            if reader.geometry is None or reader.geometry.by_output:
                reader.geometry = read.geometry
            reader.corresponds &= self._is_same(read)
            reader.biases.add(read.bias or "")
            self._calls[read.name] = self._calls.get(read.name, 0) + 1
            if self.on_read is not None and not read.block:
                with torch.no_grad():
                    self.on_read(read, self._parameters[read.name])
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
        if not has_tensor(result):
            return
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and tensor in self._made:
                    names = self._made[tensor]
                    # A norm behind one matrix of a stack may be behind others another time.
                    alone = len(names) == 1 and names[0] in self._parameters
                    norm = self._norm(function, args, kwargs) if alone else ""
                    for name in names:
                        self.readers[name].consumers.add(norm)

    def finish(self) -> None:
        """Bring together what the processes saw, once."""
        if self._is_finished:
            return
        self._is_finished = True
        everyone = gathered((self.readers, self._elsewhere))
        names = list(dict.fromkeys(name for readers, _ in everyone for name in readers))
        elsewhere = set().union(*(names for _, names in everyone))
        self.readers = {
            name: Reader(name).agreed([readers.get(name, Reader(name)) for readers, _ in everyone])
            for name in names
        }
        takers = Counter(n for own in self.readers.values() for n in own.biases | own.consumers)
        for name in names:
            stack = self.readers.get(located(name, self.dims)[0], self.readers[name])
            if stack.name != name:
                stack.refused = stack.refused or "it is read whole and matrix by matrix"
            own = self.readers[name]
            shift = own.bias or own.norm
            own.shifts_alone = takers[shift] == 1 and not elsewhere & {shift, shift.split("[")[0]}
        self.samples.finish(names)
        self.queries.finish()

    def _reader(self, name: str) -> Reader:
        return self.readers.setdefault(name, Reader(name))

    def _is_same(self, read: Read) -> bool:
        """Return whether both networks read the same positions, through the same matrix."""
        is_picked = bool(read.block)
        return all(map(self._rows.holds, read.given)) and not (is_picked and self._rows.has_left)

    def _follow(self, reads: tuple[Read, ...], tensor: Tensor) -> None:
        """Hear the gradients of a tensor, which the model may overwrite further on."""
        if not tensor.requires_grad:
            for read in reads:
                self._reader(read.name).refused = "what it reads does not hang on any weight"
            return
        shapes = []
        for read in reads:
            made = None if read.y is None else _shape_of(read.y)
            shapes.append(replace(read, x=_shape_of(read.x), y=made, given=()))
        first = len(self._heard)
        self._reads += [(shape, tensor.device) for shape in shapes]
        self._loudness += [[None] * len(self.tasks) for _ in shapes]
        self._heard += [None] * len(shapes)

        def hear(gradient: Tensor) -> None:
            # A backward that overflowed comes again, and what it said is replaced. Tensors of the
            # graph that this hook hangs on would keep it alive for ever.
            for place, shape in enumerate(shapes, start=first):
                own = shape.own(gradient) if shape.geometry.by_output else gradient
                self._heard[place] = shape.geometry.loudness(own.detach())

        tensor.register_hook(hear)  # type: ignore[no-untyped-call]

    def _told(self, read: Read, by_task: list[Tensor | None], device: torch.device) -> Tensor:
        """Return what all tasks say of the rows of a call. Shape ``[T, blocks, rows]``."""
        known = next((rows for rows in by_task if rows is not None), None)
        if known is None:  # no task hangs on it in this batch
            whole = read.y if read.geometry.by_output else read.x
            assert whole is not None
            own = read.own(whole) if read.geometry.by_output else whole
            known = torch.zeros_like(read.geometry.loudness(own), device=device)
        quiet = torch.zeros_like(known)
        return torch.stack([quiet if rows is None else rows for rows in by_task])

    def _norm(self, function: Any, args: tuple[Any, ...], kwargs: Any) -> str:
        """Return the name of the running mean if this is a norm that uses one."""
        if function is not nn.functional.batch_norm:
            return ""
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        given = dict(zip(names, args, strict=False)) | kwargs
        return "" if given.get("training") else self._means.get(id(given["running_mean"]), "")


def _go_through(batch: Iterator[TaskGradients]) -> None:
    deque(batch, maxlen=0)


def _shape_of(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that keeps no activation alive."""
    return tensor.detach().to("meta")
