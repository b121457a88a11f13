"""What is done to one random net, and the record of what became of it."""

from __future__ import annotations

import random
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzzing_grammar import FuzzedNet, build
from torch import Tensor, nn

import taskprune
from taskprune import DistillSettings, PruneResult, Safety, Task, TaskPruneError
from taskprune.calling import flatten_outputs
from taskprune.coupling import CouplingGroups, couple
from taskprune.errors import InfeasibleBudgetError, InputError, VerificationError
from taskprune.graph import trace
from taskprune.plan.plan import build_plan
from taskprune.restore.copying import deep_copy
from taskprune.testing import (
    assert_cost_is_exact,
    assert_masked_equals_pruned,
    assert_permutation_invariant,
    random_drop,
    randomise_,
    visible,
)

Record = dict[str, Any]

LIMIT = 180
"""Seconds of the processor that a net may take: a loaded or sleeping machine is no fault of it."""

WORST = 1e-9
"""Largest relative error that goes as equal, in float64."""


class _OutOfTime(BaseException):
    """The time is up."""


def try_net(seed: int) -> Record:
    """Build, check, prune, distil, save, load and export the net of a seed.

    Returns:
        ``seed``, ``kinds``, what each stage ended as (``ok``, or ``refused``, ``wrong``, ``raw``
        with the words), the largest relative ``error`` and the share of channels that are frozen.
    """
    record: Record = {"seed": seed}
    started = time.process_time()
    signal.signal(signal.SIGPROF, _ring)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what nets do that is out of fashion
            _Trial(seed, record).run()
    except _OutOfTime:
        record["time-out"] = LIMIT
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    record["seconds"] = round(time.process_time() - started, 2)
    return record


def _ring(*_: Any) -> None:
    raise _OutOfTime


class _Trial:
    def __init__(self, seed: int, record: Record) -> None:
        self.seed, self.record = seed, record
        self.draw = random.Random(f"trial {seed}")
        self.dtype = self.draw.choice([torch.float64] * 4 + [torch.float32])

    def model(self) -> FuzzedNet:
        model = build(self.seed).to(self.dtype)
        randomise_(model, seed=self.seed)
        return model

    def run(self) -> None:
        model = self.model()
        self.record["kinds"] = model.kinds
        self.inputs = tuple(x.to(self.dtype) for x in model.example)
        self.expected = _outputs(model, self.inputs)
        _wear(model, self.draw)
        before = visible(model)
        result = self._stage("prune", lambda: self._prune(model))
        self._stage("oracles", lambda: self._oracles(model, result))
        if result is not None:
            self._stage("reload", lambda: self._reload(result))
            if self.draw.random() < 0.02:
                self._stage("export", lambda: self._export(result.model))
            if self.draw.random() < 0.3:
                self._stage("distil", lambda: self._distil(model, result))
        after = visible(model)
        self._stage("given back", lambda: self._given_back(before, after, model))

    def _given_back(self, before: Record, after: Record, model: nn.Module) -> None:
        may = ("writes",)  # of buffers, by the model itself
        changed = [kind for kind in before if kind not in may and before[kind] != after[kind]]
        assert not changed, f"changed: {', '.join(changed)}"
        _assert_equal(self.expected, _outputs(model, self.inputs))

    def _stage(self, name: str, work: Callable[[], Any]) -> Any:
        """Run a stage and note how it ended; what it returns, or ``None``."""
        try:
            result = work()
        except InfeasibleBudgetError as error:
            self.record[name] = _ended("refused", error)
        except (VerificationError, AssertionError) as error:
            self.record[name] = _ended("wrong", error)
        except TaskPruneError as error:
            self.record[name] = _ended("refused", error)
        except Exception as error:  # noqa: BLE001 - what is looked for
            self.record[name] = _ended("raw", error)
        else:
            self.record.setdefault(name, "ok")
            return result
        return None

    def _oracles(self, model: nn.Module, result: PruneResult | None) -> None:
        """Remove random channels of all groups and compare; permute those of all groups."""
        groups = None if result is None else result.groups
        if groups is None or any(group.readers for group in groups):
            # Of what was compensated on data: experts may run here that did not run there.
            groups = couple(trace(model, self.inputs))
        self.record.update(_frozen(groups))
        ratio = self.draw.choice([0.2, 0.5, 0.8])
        drop = random_drop(groups, ratio, self.seed)
        plan = build_plan(groups, {n: gone for n, gone in drop.items() if not groups[n].readers})
        report = assert_masked_equals_pruned(model, plan, self.inputs, groups=groups)
        self._note_error(report.max_relative_error, report.dtype)
        if not _has_open_cost(model):
            assert_cost_is_exact(model, groups, plan, self.inputs)
        if len(groups):
            moved = assert_permutation_invariant(model, groups, None, self.inputs, seed=self.seed)
            self._note_error(moved, report.dtype)

    def _note_error(self, error: float, dtype: str) -> None:
        if dtype == "float64":
            self.record["error"] = max(error, self.record.get("error", 0.0))
            assert error <= WORST, f"an error of {error:.2g} in float64"

    def _prune(self, model: nn.Module) -> PruneResult:
        """Prune by the front door, compensated in a share of the nets."""
        compensates = self.draw.random() < 0.5
        generator = torch.Generator().manual_seed(self.seed)
        batches = [
            (tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in self.inputs),)
            for _ in range(2)
        ]
        given: dict[str, Any] = (
            {"data": batches, "forward": lambda net, batch: net(*batch[0])}
            if compensates
            else {"example_inputs": self.inputs, "importance": "magnitude"}
        )
        self.record["compensated"] = compensates
        ratio = self.draw.choice([0.1, 0.2, 0.3, 0.5])
        safety = Safety(min_channels=self.draw.choice([1, 1, 2]), max_removed_private=0.9)
        for share in (ratio, ratio / 10):
            try:
                result = taskprune.prune(
                    model, None, share, safety=safety, compensate=compensates, **given
                )
            except InfeasibleBudgetError as error:
                last = error
                continue
            self.record["removed"] = round(result.report.removed("params"), 4)
            verification = result.report.verification
            assert verification is not None
            self._note_error(verification.max_relative_error, verification.dtype)
            if verification.is_vacuous:
                self.record["vacuous"] = True
            return result
        raise last

    def _reload(self, result: PruneResult) -> None:
        """Write and read a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            taskprune.save_checkpoint(path, result.model, result.plan)
            again = taskprune.load_checkpoint(path, self.model)
        kinds = [[p.dtype for p in net.parameters()] for net in (result.model, again)]
        assert kinds[0] == kinds[1], "parameters are of other types"
        # In float64: a few nets make much of rounding, which hangs on where the weights lie.
        inputs = tuple(x.double() for x in self.inputs)
        saved = deep_copy(result.model).double()
        _assert_equal(_outputs(saved, inputs), _outputs(again.double(), inputs))

    def _distil(self, model: nn.Module, result: PruneResult) -> None:
        """Make two steps, if the original can make any."""
        loss = Task(lambda outputs, _: _mean_square(outputs))
        try:
            student = taskprune.distill(
                result.model,
                teacher=model,
                tasks={"all": loss},
                data=[(self.inputs,), (self.inputs,)],
                plan=result.plan,
                forward=lambda net, batch: net(*batch[0]),
                settings=DistillSettings(steps=2, cpu=True),
            )
        except RuntimeError:
            if self._trains():
                raise
            self.record["distil"] = "original is not trained"
        else:
            _outputs(student, self.inputs)

    def _trains(self) -> bool:
        """Whether the original has gradients: code may overwrite what they are made of."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.autograd.backward(_mean_square(self.model()(*self.inputs)))
        except RuntimeError:
            return False
        return True

    def _export(self, smaller: nn.Module) -> None:
        """Export with `torch.export`, if it takes the original."""
        try:
            with torch.no_grad():
                torch.export.export(self.model(), self.inputs)
        except Exception:  # noqa: BLE001 - nothing to ask of the smaller one then
            self.record["export"] = "original is not exported"
            return
        with torch.no_grad():
            program = torch.export.export(smaller.eval(), self.inputs)
            found = flatten_outputs(program.module()(*self.inputs))
        _assert_equal(_outputs(smaller, self.inputs), found)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the outputs in evaluation mode, from a fixed seed; nothing is left changed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return {path: t.clone() for path, t in flatten_outputs(model(*inputs)).items()}
    finally:
        for module, mode in modes:
            module.training = mode


def _mean_square(outputs: Any) -> Tensor:
    tensors = [t for t in flatten_outputs(outputs).values() if t.is_floating_point()]
    return torch.stack([t.square().mean() for t in tensors]).mean()


def _assert_equal(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Assert that outputs are equal but for rounding, which hangs on where memory lies."""
    assert expected.keys() == found.keys(), f"outputs {[*expected]} became {[*found]}"
    for path, tensor in expected.items():
        near = 1e-9 if tensor.dtype == torch.float64 else 1e-4
        same = tensor.shape == found[path].shape
        same = same and torch.allclose(tensor, found[path], near, near, equal_nan=True)
        assert same, f"output {path} differs"


def _frozen(groups: CouplingGroups) -> Record:
    """Return the share of channels that cannot go, and how many by each kind of reason."""
    free = sum(group.n_channels for group in groups)
    reasons: dict[str, int] = {}
    for group in groups.frozen:
        kind = group.reasons[0].kind if group.reasons else "?"
        reasons[kind] = reasons.get(kind, 0) + group.n_channels
    own = {kind: n for kind, n in reasons.items() if kind != "interface"}
    return {"free": free, "frozen": own}


def _has_open_cost(model: nn.Module) -> bool:
    """Whether multiply-adds are no function of sizes alone.

    Experts work on as many tokens as the values send there, which may be others once channels are
    removed. Einsum makes no products along a length of 1, to which channels may come.
    """
    open_ways = ("top", "batched", "einsum")
    return any(
        type(module).__name__ == "DynamicConv" or getattr(module, "how", "") in open_ways
        for module in model.modules()
    )


def _wear(model: nn.Module, draw: random.Random) -> None:
    """Put a model in a state that is easy to spoil: mixed modes, gradients, hooks."""
    for module in model.modules():
        module.training = draw.random() < 0.5
    for parameter in model.parameters():
        parameter.requires_grad_(draw.random() < 0.8)
        if draw.random() < 0.3:
            parameter.grad = torch.full_like(parameter, 0.25)
    model.register_forward_hook(_hook)


def _hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
    """Does nothing, and must still be there."""


def _ended(how: str, error: Exception) -> str:
    """Return how a stage ended, in words that do not differ from net to net."""
    said = re.sub(r"\s+", " ", str(error))[:300]
    if isinstance(error, InputError | InfeasibleBudgetError):
        said = re.sub(r"[\d,.]+", "#", said)
    return f"{how}: {type(error).__name__}: {said}"
