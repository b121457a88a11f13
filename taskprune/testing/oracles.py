"""What must hold for every model, every group and every plan."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from taskprune.calling.forward import Forward, call_inputs
from taskprune.cost import count_macs, count_params, measure_macs, measure_params
from taskprune.coupling.groups import ORDERED_BY_SIZES, CouplingGroups, IntArray
from taskprune.errors import VerificationError
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.restore.caches import Caches
from taskprune.rewrite import VerificationReport, apply_and_verify, apply_plan
from taskprune.rewrite.comparison import output_errors, run
from taskprune.rewrite.masking import masked_copy
from taskprune.rewrite.permutation import permuted_copy
from taskprune.rewrite.surgery import named_tensors, skeleton
from taskprune.rewrite.verification import check_permutation


def randomise_(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and norm statistic a random value, in place; return the model.

    Fresh models hide mistakes: with a norm's scale 1, shift 0, mean 0 and variance 1, an entry
    that was left out of a group makes no difference. Matrices and kernels are drawn so that signals
    keep their size; scales around 1, shifts and means around 0, variances between 0.5 and 1.5, and
    all of them differ from channel to channel.

    Args:
        model: Any model. Integer buffers stay, and so do float buffers that no norm owns.
        seed: Two calls with one seed give equal values.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")

    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim >= 2:
                fan_in = math.prod(tensor.shape[1:])
                values = normal(tensor) / math.sqrt(max(1, fan_in))
            elif name.endswith("bias"):
                values = 0.3 * normal(tensor)
            else:
                values = 1 + 0.3 * normal(tensor)
            tensor.copy_(values)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, device="cpu"))
    return model


def random_drop(groups: CouplingGroups, ratio: float, seed: int) -> dict[str, IntArray]:
    """Choose about ``ratio`` of the channels of every group at random; as many stay as must.

    Returns:
        ``{group name: channels to drop, ascending}``, for :func:`taskprune.plan.build_plan`.
    """
    rng = np.random.default_rng(seed)
    drop: dict[str, IntArray] = {}
    for group in groups:
        wanted = max(group.step, round(ratio * group.n_channels))
        n_drop = min(group.n_channels - group.fewest, wanted)
        n_drop -= n_drop % group.step
        if ratio > 0 and n_drop > 0:
            chosen = rng.choice(group.n_channels, n_drop, replace=False)
            drop[group.name] = np.sort(chosen).astype(np.int64)
    return drop


def masked_model(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of ``model`` whose removed channels are zero and do not count.

    All entries that the plan removes are zeroed; layer, group and RMS norms take their statistics
    over the kept channels. It has the original's shapes and the pruned model's outputs.
    """
    return masked_copy(model, plan)


def permuted_model(model: nn.Module, groups: CouplingGroups, group: str, seed: int) -> nn.Module:
    """Return a copy of ``model`` with one group's channels in another order, in all its members."""
    return permuted_copy(model, groups.replacements, [groups[group]], seed)


def assert_masked_equals_pruned(
    model: nn.Module,
    plan: PruningPlan,
    inputs: Any,
    *,
    forward: Forward | None = None,
    groups: CouplingGroups | None = None,
) -> VerificationReport:
    """Assert that applying the plan yields the masked original's outputs.

    Args:
        model: The original; randomise it first.
        plan: The plan to apply.
        inputs: The example inputs.
        forward: ``(model, inputs) -> outputs``.
        groups: Checks groups that the code's own statistics cross by permutation.

    Returns:
        What was measured, and how: see ``oracle`` and ``excluded``.
    """
    try:
        report = apply_and_verify(
            model, plan, example_inputs=inputs, forward=forward, groups=groups
        )[1]
    except VerificationError as error:
        raise AssertionError(str(error)) from error
    assert report is not None
    return report


def assert_permutation_invariant(
    model: nn.Module,
    groups: CouplingGroups,
    group: str | None,
    inputs: Any,
    *,
    forward: Forward | None = None,
    seed: int = 0,
) -> float:
    """Assert that reordering a group's channels in all members leaves the outputs where they were.

    Args:
        model: The model; randomise it first.
        groups: Its groups.
        group: Name of the group to reorder; ``None`` reorders all of them at once, which costs no
            more than one but does not tell which is wrong.
        inputs: The example inputs.
        forward: ``(model, inputs) -> outputs``.
        seed: Of the orders.

    Returns:
        The largest relative error. A right group gives about 1e-15 in float64, one with a missing
        member moves the outputs visibly if the model was randomised.
    """
    try:
        names = [group] if group is not None else [g.name for g in groups]
        moved = check_permutation(
            model, groups, names, inputs=inputs, forward=forward or call_inputs, seed=seed
        )
    except VerificationError as error:
        raise AssertionError(str(error)) from error
    return max((error.relative for error in moved.errors), default=0.0)


def assert_identity_plan(
    model: nn.Module, groups: CouplingGroups, inputs: Any, *, forward: Forward | None = None
) -> None:
    """Assert that the plan that drops nothing changes no tensor and no output, to the bit."""
    same = apply_plan(model, build_plan(groups, {}), verify=False)
    model = skeleton(model, groups.replacements)
    before, after = named_tensors(model), named_tensors(same)
    assert list(before) == list(after), "The empty plan changed the names of the tensors."
    for name, tensor in before.items():
        assert torch.equal(_bits(tensor), _bits(after[name])), f"The empty plan changed `{name}`."
    call = forward or call_inputs
    caches = Caches(model, call)
    errors = output_errors(
        run(model, inputs, call, caches, dtype=None), run(same, inputs, call, caches, dtype=None)
    )
    moved = [error for error in errors if error.exceeds(0.0)]
    assert not moved, f"The empty plan changed the outputs: {moved[0]}."


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    # NaN differs from itself; what it is stored as does not.
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def assert_cost_is_exact(
    model: nn.Module,
    groups: CouplingGroups,
    plan: PruningPlan,
    inputs: Any,
    *,
    forward: Forward | None = None,
) -> None:
    """Assert that predicted parameters and multiply-adds equal those of the pruned model.

    Where a function orders matrix products by their sizes, such as ``torch.linalg.multi_dot``, the
    pruned model may take fewer multiply-adds than predicted, but never more.
    """
    may_be_fewer = any(term.operator in ORDERED_BY_SIZES for term in groups.macs)
    smaller = apply_plan(model, plan, verify=False)
    for version, kept, when in (
        (model, groups.full_counts(), "before"),
        (smaller, plan.kept, "after"),
    ):
        params, macs = count_params(groups, kept), count_macs(groups, kept)
        assert params == measure_params(version), (
            f"Predicted {params} parameters {when} pruning. Found {measure_params(version)}."
        )
        measured = measure_macs(version, inputs, forward=forward)
        fewer = may_be_fewer and version is smaller and measured < macs
        assert fewer or macs == measured, f"Predicted {macs} MACs {when} pruning. Found {measured}."
