"""What other libraries make of a model, by their own documented interfaces and unpatched."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning as tp
from children import Outcome, watched
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from taskprune.calling import call_inputs, flatten_outputs

TOLERANCE = 1e-4
"""Largest error, relative to the output's largest value, that goes as equal in float32."""


def torch_pruning_groups(model: nn.Module, inputs: Any) -> int:
    """Build Torch-Pruning's dependency graph and all of its groups; return how many."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    return sum(1 for _ in graph.get_all_groups())


def kirigami_groups(model: nn.Module, inputs: Any) -> int:
    """Build torch-kirigami's dependency graph and candidates; return how many.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    if importlib.util.find_spec("torch_kirigami") is None:
        raise ModuleNotFoundError("torch-kirigami is not installed")
    kirigami: Any = importlib.import_module("torch_kirigami")
    pruning: Any = importlib.import_module("torch_kirigami.pruning")
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    graph = kirigami.DependencyGraph.build(model, args=args, kwargs=kwargs)
    return len(pruning.Pruner(model, graph=graph).discover_candidates().candidates)


def torch_pruning_result(model: nn.Module, inputs: Any, *, ratio: float) -> Outcome:
    """Prune ``ratio`` of the channels with Torch-Pruning, in place, and look at what comes out.

    Returns:
        ``outcome`` (``runs``, or the step that failed and its error), ``shapes`` (whether the
        outputs kept theirs), ``removed``, the share of the parameters that went, and ``seconds``.
    """
    before = sum(p.numel() for p in model.parameters())
    reference = _outputs(model, inputs)
    step = "trace error"
    try:
        with watched() as watch:
            pruner = _pruner(model, inputs, ratio)
            step = "prune error"
            pruner.step()
        step = "forward error"
        outputs = _outputs(model, inputs)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the row's content
        return {"outcome": f"{step}: {type(error).__name__}: {str(error)[:160]}"}
    removed = 1 - sum(p.numel() for p in model.parameters()) / before
    if removed == 0:
        return {"outcome": "nothing pruned"}
    return {
        "outcome": "runs",
        "shapes": [t.shape for t in outputs] == [t.shape for t in reference],
        "removed": removed,
        "seconds": watch.seconds,
    }


def torch_pruning_is_exact(model: nn.Module, inputs: Any, *, ratio: float) -> bool | None:
    """Prune like :func:`torch_pruning_result`; say whether removing channels equals zeroing them.

    ``None`` where that cannot be told, see :func:`_prune_and_compare`.
    """
    return _prune_and_compare(_pruner(model, inputs, ratio), model, inputs)


def _pruner(model: nn.Module, inputs: Any, ratio: float) -> Any:
    warnings.simplefilter("ignore")
    fused = [m for m in model.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)]
    counts = [(module.qkv, getattr(module, "num_heads", None)) for module in fused]
    heads = {layer: n for layer, n in counts if isinstance(n, int)}
    return tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        num_heads=heads,
    )


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(0)
        return list(flatten_outputs(call_inputs(model.eval(), inputs)).values())


def _prune_and_compare(pruner: Any, model: nn.Module, inputs: Any) -> bool | None:
    """Prune group by group; say whether removing channels equals zeroing them, for all groups.

    ``None`` where that cannot be told: a norm computes a statistic across the channels, or the
    model stops running on the way. Outputs that are cut themselves are left out.
    """
    exact: bool | None = True
    for group in pruner.step(interactive=True):
        comparable = exact is not None and _zero(group)
        expected = _try_outputs(model, inputs) if comparable else None
        group.prune()
        found = _try_outputs(model, inputs) if expected is not None else None
        if expected is None or found is None:
            exact = None
        elif exact and not _same(expected, found):
            exact = False
    return exact


def _try_outputs(model: nn.Module, inputs: Any) -> list[Tensor] | None:
    try:
        return _outputs(model, inputs)
    except Exception:  # noqa: BLE001 - reported by the forward at the end
        return None


def _same(expected: list[Tensor], found: list[Tensor]) -> bool:
    def close(a: Tensor, b: Tensor) -> bool:
        scale = a.abs().max().clamp_min(1e-6) if a.numel() else 1.0
        return a.shape != b.shape or bool(((a - b).abs() <= TOLERANCE * scale).all())

    return len(expected) == len(found) and all(map(close, expected, found))


def _zero(group: Any) -> bool:
    """Zero the channels of a group where they are made; say whether that silences them."""
    for dependency, indices in group:
        target = dependency.target.module
        for tensor, dim in _made(target, dependency):
            index = torch.as_tensor(list(indices), device=tensor.device)
            if dim >= tensor.ndim or not index.lt(tensor.shape[dim]).all():
                return False  # whether pruning it fails is for the library to say
            tensor.data.index_fill_(dim, index, 0)
        if isinstance(target, nn.LayerNorm | nn.GroupNorm | nn.LSTM | nn.MultiheadAttention):
            return False
    return True


def _made(module: Any, dependency: Any) -> Iterator[tuple[Tensor, int]]:
    """Yield the tensors, and their dims, that make the channels which a dependency removes."""
    is_norm = isinstance(module, _BatchNorm)
    if "out_channels" not in dependency.handler.__name__ and not is_norm:
        return
    if isinstance(module, nn.Parameter):
        yield module, module.ndim - 1
    elif isinstance(module, nn.Embedding):
        yield module.weight, 1
    elif isinstance(module, _ConvNd | nn.Linear) or is_norm:
        transposed = isinstance(module, _ConvTransposeNd) and module.groups == 1
        tensors = (module.weight, module.bias, getattr(module, "running_mean", None))
        for tensor, dim in zip(tensors, (int(transposed), 0, 0), strict=True):
            if tensor is not None:
                yield tensor, dim
