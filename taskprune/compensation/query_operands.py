"""The calls in which queries meet keys, as ``[..., n, d]`` and ``[..., m, d]``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True, eq=False, slots=True)
class Operands:
    """Queries and keys of one call.

    Attributes:
        given: The queries as the call got them.
        keys_given: The keys as the call got them.
        keys: Shape ``[..., m, d]``, with the queries' leading dims.
        order: How `given` is permuted to get ``[..., n, d]``; ``None``: not at all.
        call_with: Returns the call's arguments with other queries, as they are in `queries`.
        is_attention: Whether the call itself takes a softmax over keys.
    """

    given: Tensor
    keys_given: Tensor
    keys: Tensor
    order: tuple[int, ...] | None
    call_with: Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]]
    is_attention: bool = False

    @property
    def queries(self) -> Tensor:
        """Shape ``[..., n, d]``."""
        return self.arranged(self.given)

    def arranged(self, like_given: Tensor) -> Tensor:
        """Return something with the shape of `given` as queries are."""
        return like_given if self.order is None else like_given.permute(self.order)


def operands_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands | None:
    """Return the queries and keys of a call, if it may be a product of such.

    Args:
        name: Of the function.
        args: What it is called with.
        kwargs: What it is called with by name.
    """
    if name == "scaled_dot_product_attention":
        return _fused(args, kwargs)
    if name in ("matmul", "__matmul__", "bmm") and len(args) == 2 and not kwargs:
        return _plain(args, kwargs, 0)
    if name in ("baddbmm", "baddbmm_") and len(args) == 3:
        return _plain(args, kwargs, 1)
    if name == "einsum" and not kwargs and args and isinstance(args[0], str):
        return _by_letters(args[0], args[1:])
    return None


def _fused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands | None:
    given = dict(zip(_FUSED, args, strict=False)) | kwargs
    queries, keys = given.get("query"), given.get("key")
    if not isinstance(queries, Tensor) or not isinstance(keys, Tensor):
        return None
    whole = keys
    if given.get("enable_gqa") and queries.ndim > 2 and keys.ndim > 2:
        whole = keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], -3)

    def call_with(other: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((other, *args[1:]), kwargs) if args else (args, kwargs | {"query": other})

    return _matched(queries, keys, whole, None, call_with, is_attention=True)


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any], at: int) -> Operands | None:
    queries, keys = args[at : at + 2]
    if not isinstance(queries, Tensor) or not isinstance(keys, Tensor) or keys.ndim < 2:
        return None

    def call_with(other: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (*args[:at], other, *args[at + 1 :]), kwargs

    return _matched(queries, keys, keys.mT, None, call_with)


def _by_letters(equation: str, rest: Sequence[Any]) -> Operands | None:
    tensors = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    sides = equation.replace(" ", "").split("->")
    if len(tensors) != 2 or len(sides) != 2 or "." in equation or sides[0].count(",") != 1:
        return None
    (left, right), out = sides[0].split(","), sides[1]
    if any(len(set(letters)) != len(letters) for letters in (left, right, out)):
        return None
    shared = [c for c in left if c in right and c in out]
    summed = [c for c in left if c in right and c not in out]
    own, other = [c for c in left if c not in right], [c for c in right if c not in left]
    # Keys last in what it makes, as where queries come first.
    if not len(summed) == len(own) == len(other) == 1 or out[-1:] != other[0] or own[0] not in out:
        return None
    letters = [*shared, own[0], summed[0]]
    order = tuple(left.index(c) for c in letters)
    keys = tensors[1].permute([right.index(c) for c in (*shared, other[0], summed[0])])
    back = tuple(letters.index(c) for c in left)

    def call_with(changed: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (equation, changed.permute(back), tensors[1]), {}

    return _matched(tensors[0], tensors[1], keys, order, call_with)


def _matched(
    given: Tensor,
    keys_given: Tensor,
    keys: Tensor,
    order: tuple[int, ...] | None,
    call_with: Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]],
    *,
    is_attention: bool = False,
) -> Operands | None:
    """Give keys the leading dims of the queries; ``None`` where queries would have to repeat."""
    queries = given if order is None else given.permute(order)
    if queries.ndim < 2 or queries.shape[-1] != keys.shape[-1] or not queries.is_floating_point():
        return None
    lead = queries.shape[:-2]
    own = keys.shape[:-2]
    if len(own) > len(lead) or any(
        size not in (1, wanted) for size, wanted in zip(own[::-1], lead[::-1], strict=False)
    ):
        return None
    keys = keys.expand(*lead, *keys.shape[-2:])
    return Operands(given, keys_given, keys, order, call_with, is_attention)
