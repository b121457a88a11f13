"""Which modules of a model get replaced, and doing it, so that it can be undone and redone.

A replacement is recorded as data. The plan carries the records, so that the original class is all
that a checkpoint needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from taskprune.errors import PlanMismatchError
from taskprune.replace import dropping, unequal_groups
from taskprune.replace.plain_weight import is_spectrally_normed, parts_of, with_plain_weight
from taskprune.replace.prunable_attention import PrunableMultiheadAttention
from taskprune.replace.replacement_record import ModuleReplacement
from taskprune.replace.unequal_groups import UnequalGroupsConv

ATTENTION = "multihead_attention"
"""The kind of a ``torch.nn.MultiheadAttention`` that becomes `PrunableMultiheadAttention`."""


CONVOLUTION = "unequal_groups_conv"
"""The kind of a grouped convolution that becomes `UnequalGroupsConv`. Coupling finds them."""

PLAIN = "plain_weight"
"""The kind of a layer whose spectral norm is worked into its weight."""


def find_replacements(model: nn.Module) -> tuple[ModuleReplacement, ...]:
    """Return the modules that can be replaced in ``model``, in order.

    That is every ``torch.nn.MultiheadAttention`` itself (no subclass, which may compute something
    else) that carries no hooks or parametrisations; others stay as they are, with all of their
    channels. And every layer that is spectrally normed and nothing else. None of them if it is the
    whole model or shares a parameter with another module.
    """
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    found = ((path, _kind_for(module), module) for path, module in model.named_modules() if path)
    return tuple(
        ModuleReplacement(path, kind)
        for path, kind, module in found
        if kind and all(owners[id(parameter)] == 1 for parameter in module.parameters())
    )


def reference_replacements(
    replacements: Iterable[ModuleReplacement],
) -> tuple[ModuleReplacement, ...]:
    """Return those without which the original is not what the pruned model is compared with.

    It computes what a dropped task did, or normalises by what a plan removes.
    """
    return tuple(r for r in replacements if r.kind in {*dropping.KINDS, PLAIN})


def replace_modules(
    model: nn.Module, replacements: Iterable[ModuleReplacement]
) -> Callable[[], None]:
    """Put the replacements in place in ``model`` itself; those already there stay.

    A module that occurs in several places is replaced by one. Its weights lie in the memory of
    those it replaces, which whoever hands it out has to end. Stacks of
    ``torch.nn.TransformerEncoder`` stop packing padded inputs into nested tensors, which only the
    fused inference path of packed attention takes; positions of padding then hold what the layers
    compute there, as in training, in place of zeros.

    Returns:
        A function that gives the model back as it was.

    Raises:
        PlanMismatchError: The model has nothing to replace at such a path. It is unchanged.
    """
    replacements = tuple(replacements)
    undo: list[Callable[[], None]] = []

    def give_back() -> None:
        while undo:
            undo.pop()()

    try:
        dropping.take_out(model, (r for r in replacements if r.kind in dropping.KINDS), undo)
        _swap(model, [r for r in replacements if r.kind not in dropping.KINDS], undo)
    except BaseException:
        give_back()
        raise
    return give_back


def _swap(
    model: nn.Module, replacements: Iterable[ModuleReplacement], undo: list[Callable[[], None]]
) -> None:
    substitutes: dict[int, nn.Module] = {}
    for replacement in replacements:
        module = _module_at(model, replacement)
        if not _is_done(module, replacement):
            substitutes[id(module)] = _ORIGINALS[replacement.kind].substitute(module)
            if isinstance(module, nn.MultiheadAttention):
                vars(substitutes[id(module)]).update(_notes(module))
    for parent in list(model.modules()) if substitutes else ():
        for name, child in parent._modules.items():
            if id(child) in substitutes:
                undo.append(partial(parent._modules.__setitem__, name, child))
                parent._modules[name] = substitutes[id(child)]
        if isinstance(parent, nn.TransformerEncoder) and parent.use_nested_tensor:
            undo.append(
                partial(vars(parent).__setitem__, "use_nested_tensor", parent.use_nested_tensor)
            )
            parent.use_nested_tensor = False


@contextmanager
def replaced_modules(
    model: nn.Module, replacements: Iterable[ModuleReplacement]
) -> Iterator[nn.Module]:
    """Borrow ``model`` with its modules replaced; it is given back as it was, also on error."""
    give_back = replace_modules(model, replacements)
    try:
        yield model
    finally:
        give_back()


def split_parameters(
    model: nn.Module, replacements: Iterable[ModuleReplacement]
) -> dict[str, list[tuple[str, slice]]]:
    """Return where the parameters of modules go that get replaced; those of dropped tasks nowhere.

    Args:
        model: The original; modules in it that are replaced already have nothing to split.
        replacements: Those of the plan.

    Returns:
        ``{name in the original: [(name in the replaced model, rows of the original), ...]}``.

    Raises:
        PlanMismatchError: The model has nothing to replace at such a path.
    """
    replacements = tuple(replacements)
    moves: dict[str, list[tuple[str, slice]]] = {
        name: [] for name in dropping.names_taken(model, replacements)
    }
    for replacement in replacements:
        if replacement.kind in dropping.KINDS:
            continue
        module = _module_at(model, replacement)
        if _is_done(module, replacement):
            continue
        for name, _ in module.named_parameters():
            moves[f"{replacement.path}.{name}"] = [
                (f"{replacement.path}.{part}", rows)
                for part, rows in _ORIGINALS[replacement.kind].parts(name, module)
            ]
    return moves


@dataclass(frozen=True, slots=True)
class _Original:
    """A kind of module that is replaced: what to call it, what it is, and what becomes of it."""

    text: str
    fits: Callable[[nn.Module], bool]
    substitute: Callable[[Any], nn.Module]
    parts: Callable[[str, Any], list[tuple[str, slice]]]
    done: tuple[type[nn.Module], ...] = ()


_ORIGINALS: dict[str, _Original] = {}


def _is_done(module: nn.Module, replacement: ModuleReplacement) -> bool:
    original = _ORIGINALS[replacement.kind]
    return isinstance(module, original.done) if original.done else not original.fits(module)


def _kind_for(module: nn.Module) -> str:
    """Return the kind of a module that is replaced before anything is traced; empty for others."""
    kinds = (kind for kind in (ATTENTION, PLAIN) if _ORIGINALS[kind].fits(module))
    return next(kinds, "")


def _module_at(model: nn.Module, replacement: ModuleReplacement) -> Any:
    if replacement.kind not in _ORIGINALS:
        raise PlanMismatchError(
            f"The plan replaces `{replacement.path}` by {replacement.kind!r}, which this version "
            f"of taskprune does not know. It knows {sorted({*_ORIGINALS, *dropping.KINDS})}."
        )
    original = _ORIGINALS[replacement.kind]
    try:
        module = model.get_submodule(replacement.path)
    except AttributeError as error:
        raise PlanMismatchError(
            f"The plan was made for a model with a {original.text} at `{replacement.path}`; this "
            "model has nothing there. Build the model with the arguments of the original."
        ) from error
    if not _is_done(module, replacement) and not original.fits(module):
        raise PlanMismatchError(
            f"The plan was made for a model with a {original.text} at `{replacement.path}`. Found "
            f"{type(module).__name__}, or one with options, hooks or parametrisations that the "
            "original's had not. Build the model like the original."
        )
    return module


def _is_grouped(module: nn.Module) -> bool:
    return (
        type(module) in unequal_groups.KINDS
        and getattr(module, "groups", 1) > 1
        and isinstance(module._parameters.get("weight"), nn.Parameter)
        and not module._modules
    )


def _is_attention(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention and _is_plain(module)


def _is_plain(module: nn.MultiheadAttention) -> bool:
    """Return whether nothing was added to the module that its replacement would lose."""
    unused = nn.MultiheadAttention(1, 1, device="meta")
    parts = (module, module.out_proj)
    return (
        type(module.out_proj) is NonDynamicallyQuantizableLinear
        and vars(module).keys() - _notes(module) <= vars(unused).keys() | {"bias_k", "bias_v"}
        and module._parameters.keys() <= unused._parameters.keys() | {"bias_k", "bias_v"}
        and module._modules.keys() == unused._modules.keys()
        and not module._buffers
        and not any(state for part in parts for state in _hooks(part))
    )


def _notes(module: nn.MultiheadAttention) -> dict[str, Any]:
    """Return plain data that somebody put on the module, which its forward does not know of."""
    own = vars(nn.MultiheadAttention(1, 1, device="meta"))
    return {
        name: value
        for name, value in vars(module).items()
        if name not in own and (value is None or isinstance(value, bool | int | float | str))
    }


def _hooks(module: nn.Module) -> Iterator[Any]:
    return (state for name, state in vars(module).items() if name.endswith("_hooks"))


_ORIGINALS |= {
    ATTENTION: _Original(
        "plain `torch.nn.MultiheadAttention`",
        _is_attention,
        PrunableMultiheadAttention.from_torch,
        lambda name, module: PrunableMultiheadAttention.parts_of(name, module.embed_dim),
        (PrunableMultiheadAttention,),
    ),
    CONVOLUTION: _Original(
        "plain grouped convolution",
        _is_grouped,
        UnequalGroupsConv.from_torch,
        UnequalGroupsConv.parts_of,
        (UnequalGroupsConv,),
    ),
    PLAIN: _Original(
        "spectrally normed layer",
        is_spectrally_normed,
        with_plain_weight,
        lambda name, _: parts_of(name),
    ),
}
