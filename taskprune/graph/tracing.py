"""Run a model once and keep what it computed: :func:`trace`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taskprune.calling.forward import Forward, Forwards, United, call_inputs, one_forward
from taskprune.calling.meta import beside, shapes_only, without_values
from taskprune.calling.outputs import flatten_outputs, resolve_paths
from taskprune.calling.task import Task
from taskprune.calling.wrappers import bare, uncompiled
from taskprune.errors import TaskPruneError, TraceError
from taskprune.graph.attributes import Place, TracedAttributes
from taskprune.graph.listening import DispatchMode, FunctionMode
from taskprune.graph.recorder import Recorder
from taskprune.graph.records import GraphOutput, ModelGraph
from taskprune.replace import ModuleReplacement, find_replacements, replaced_modules
from taskprune.restore.borrow import TensorGuard, borrowed
from taskprune.restore.caches import Caches
from taskprune.restore.modes import Mode, set_mode_without_updates
from taskprune.restore.process import collection_paused, readable_kernels, without_autocast

TaskOutputs: TypeAlias = Mapping[str, Task] | Mapping[str, str | Sequence[str]]
"""Tasks, or just the output paths of each."""

TraceModes: TypeAlias = Literal["auto", "eval", "train", "both", "all"]
"""Which forward passes a trace records; see :func:`trace`."""


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    forward: Forwards | None = None,
    tasks: TaskOutputs | None = None,
    modes: TraceModes = "auto",
) -> ModelGraph:
    """Record the operators, sizes and outputs of one forward pass.

    Nothing is computed: the model runs on tensors without content. Only where the forward needs
    values (``.item()``, branches on data) it runs for real. The model is given back as it was,
    also after an exception: flags, attributes, buffers, hooks, gradients, random generators.
    A surrounding ``torch.autocast`` does not count, since casts couple nothing; one inside the
    model or in ``forward`` does.

    Modules that cannot shrink as they are written (``torch.nn.MultiheadAttention``) are recorded as
    the equal module that takes their place in the pruned model.

    Args:
        model: Any module, also on the meta device. Taken out of ``torch.compile`` and data-parallel
            wrappers first.
        example_inputs: What ``forward`` takes; dim 0 of each tensor is the batch. For a model on
            the meta device they may be there as well or not.
        forward: ``(model, inputs) -> outputs``. Default: a tensor is passed as it is, a tuple as
            positional and a dict as keyword arguments. Several, in a list or a dict by name, are
            recorded one after the other as one: a call for each task, each epoch's branch, each
            entry point. What no forward reads is named in ``untraced``.
        tasks: Output paths of each task, as :class:`~taskprune.Task` objects or plain paths. A
            prefix such as ``"detection"`` takes everything below it. A task that declares none
            owns none.
        modes: Which forward passes to record. ``"auto"``: that of evaluation, and that of
            training as well when the first leaves parameters untouched and the second runs.
            ``"all"``: evaluation, and training wherever it runs, so that code of its own in either
            keeps working. ``"both"`` insists. The couplings of a graph hold in all of its passes.

    Raises:
        InputError: ``model`` is no module or sharded, or a task owns an output that does not exist.
        TraceError: The forward raised on the example inputs; the original error is chained.
    """
    model = bare(model)
    if without_values(model):
        example_inputs = shapes_only(example_inputs)
    wanted = _wanted_outputs(tasks)
    call = one_forward(forward) or call_inputs
    replacements = find_replacements(model)
    notes: list[str] = []
    if replacements:
        types = {path: type(module) for path, module in model.named_modules()}
        try:
            with replaced_modules(model, replacements):
                session = _Session(model, example_inputs, call)
                session.record(modes)
                return session.graph(wanted, replacements, types)
        except TraceError as error:
            # Code that reaches into its attention modules finds other parameters there than it
            # expects. Traced as written, it says what is wrong with the inputs, if anything is.
            notes.append(f"No attention module could be replaced: {error.__cause__}")
    session = _Session(model, example_inputs, call)
    session.notes += notes
    session.record(modes)
    return session.graph(wanted)


class _Session:
    """The passes of one trace."""

    def __init__(self, model: nn.Module, inputs: Any, forward: Forward) -> None:
        self.model = model
        self.inputs = inputs
        self.forward = forward
        self.recorder = Recorder(model)
        self.caches = Caches(model, forward)
        self.modes: list[Mode] = []
        self.notes: list[str] = []
        self.attributes: dict[Place, int] = {}
        self.shared_attributes: dict[Place, tuple[str, ...]] = {}
        self.used_real_tensors = False

    def record(self, modes: TraceModes) -> None:
        """Record the passes asked for."""
        if modes != "train":
            self.run("eval")
        if modes in ("train", "both"):
            self.run("train")
        elif modes == "all" or (modes == "auto" and self.untraced()):
            self.try_run("train")

    def run(self, mode: Mode) -> None:
        """Record one pass, without content first, for real where that is not enough."""
        start = self.recorder.mark()
        try:
            self._record(mode, real=False)
        except Exception:  # noqa: BLE001 - the real run below tells whether the model is at fault
            self.recorder.rewind(start)
            try:
                self._record(mode, real=True)
            except TaskPruneError:
                raise
            except Exception as error:
                raise TraceError(
                    f"Expected the model to run on the example inputs in {mode} mode. Its forward "
                    f"raised {type(error).__name__}: {error}. Pass inputs as the model takes them, "
                    "or a `forward=` that calls it."
                ) from error
            self.used_real_tensors = True
        self.modes.append(mode)

    def try_run(self, mode: Mode) -> None:
        """Record one pass if it runs; otherwise leave a note."""
        start = self.recorder.mark()
        try:
            self.run(mode)
        except TraceError as error:
            self.recorder.rewind(start)
            self.notes.append(f"The {mode} pass was not recorded: {error.__cause__}")

    def _record(self, mode: Mode, *, real: bool) -> None:
        recorder = self.recorder
        recorder.mode = mode
        recorder.tensor_guard = TensorGuard()
        recorder.is_real = real
        functions = FunctionMode(recorder)
        with ExitStack() as stack:
            stack.callback(recorder.tensor_guard.restore)
            stack.enter_context(borrowed(self.model))
            stack.enter_context(readable_kernels())
            stack.enter_context(without_autocast(self.model))
            stack.enter_context(self.caches.aside())
            set_mode_without_updates(self.model, mode)
            stack.enter_context(uncompiled(self.model))
            stack.enter_context(beside(self.model))
            traced = TracedAttributes(self.model, recorder)
            self.attributes, self.shared_attributes = traced.values, traced.shared
            stack.enter_context(torch.no_grad())
            stack.enter_context(recorder.watching_modules(self.model))
            if not real:
                stack.enter_context(collection_paused())  # a real run may need the memory back
                stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(DispatchMode(recorder, functions))
            stack.enter_context(functions)
            outputs = self.forward(self.model, self.inputs)
            recorder.outputs += [
                GraphOutput(path, recorder.number(tensor), mode)
                for one in (outputs if isinstance(outputs, United) else (outputs,))
                for path, tensor in flatten_outputs(one).items()
            ]

    def untraced(self) -> tuple[str, ...]:
        """Names of the parameters that no recorded operator read."""
        read: set[int] = set()
        for operation in self.recorder.operations:
            read.update(operation.operands)
        read.update(output.value for output in self.recorder.outputs)
        return tuple(name for name, n in self.recorder.parameters.items() if n not in read)

    def graph(
        self,
        wanted: Mapping[str, tuple[str, ...]],
        replacements: tuple[ModuleReplacement, ...] = (),
        types: Mapping[str, type[nn.Module]] | None = None,
    ) -> ModelGraph:
        """Return the finished record; `types` are those of the user's modules by path."""
        recorder = self.recorder
        recorded = {path: type(module) for path, module in self.model.named_modules()}
        return ModelGraph(
            values=tuple(recorder.values),
            operations=tuple(recorder.operations),
            calls=tuple(recorder.calls),
            guards=tuple(recorder.guards),
            inputs=tuple(recorder.inputs),
            outputs=tuple(recorder.outputs),
            module_outputs=tuple(recorder.module_outputs),
            parameters=recorder.parameters,
            buffers=recorder.buffers,
            attributes=self.attributes,
            shared_attributes=self.shared_attributes,
            tied=dict(_tied(self.model)),
            modules={**recorded, **(types or {})},
            tasks=resolve_paths(wanted, (output.path for output in recorder.outputs)),
            modes=tuple(self.modes),
            notes=tuple(self.notes),
            untraced=self.untraced(),
            batch_size=_batch_size(recorder),
            used_real_tensors=self.used_real_tensors,
            replacements=replacements,
        )


def _tied(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield every further name of a parameter or buffer, with its first."""
    for named in (model.named_parameters, model.named_buffers):
        first: dict[int, str] = {}
        for name, tensor in named(remove_duplicate=False):
            if first.setdefault(id(tensor), name) != name:
                yield name, first[id(tensor)]


def _batch_size(recorder: Recorder) -> int:
    for operation in recorder.operations:
        for number in operation.operands:
            value = recorder.values[number]
            if value.kind == "outside" and len(value.shape) > 1:
                return value.shape[0]
    return 1


def _wanted_outputs(tasks: TaskOutputs | None) -> dict[str, tuple[str, ...]]:
    wanted: dict[str, tuple[str, ...]] = {}
    for name, task in (tasks or {}).items():
        paths = task.output_paths if isinstance(task, Task) else task
        wanted[name] = (paths,) if isinstance(paths, str) else tuple(paths or ())
    return wanted
