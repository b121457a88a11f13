"""Find, while a model runs, where queries meet keys, and which rows of which weight made them.

A function mode follows what a projection makes through everything that only moves entries about or
multiplies them by a number: the same call is made on a tensor that says of each entry which row of
the weight it came from. Where the result is multiplied with something along channels, as in
``q @ k.transpose(-2, -1)`` or fused attention, each head tells its rows. Whatever else happens on
the way (positions that rotate, a norm, a sum) ends the trail, and nothing is recognised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from taskprune.compensation.query_operands import Operands, operands_of
from taskprune.compensation.reading_calls import has_tensor
from taskprune.compensation.reads import ConvGeometry, ProductGeometry
from taskprune.compensation.recognised_calls import RECOGNISERS

_T: Any = Tensor
_GETTERS = {_T.mT.__get__, _T.T.__get__}
_MOVING = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "swapdims", "t"),
        *("permute", "movedim", "moveaxis", "squeeze", "unsqueeze", "expand", "__getitem__"),
        *("select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
        *("repeat_interleave",),
    )
)
"""Functions that only move entries about."""
_COPYING = frozenset(
    ("contiguous", "clone", "detach", "to", "float", "double", "half", "bfloat16", "alias")
)
"""Functions that leave every entry where it is."""
_MULTIPLYING = frozenset(("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__"))
_DIVIDING = frozenset(
    ("div", "divide", "true_divide", "div_", "__truediv__", "__div__", "__itruediv__", "__idiv__")
)
_ADDING = frozenset(
    ("add", "add_", "sub", "sub_", "__add__", "__radd__", "__iadd__", "__sub__", "__isub__")
)
_MASKING = frozenset(("masked_fill", "masked_fill_", "where"))
_SOFTMAX = frozenset(("softmax", "log_softmax"))


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """What made a tensor whose entries were only moved about since.

    Attributes:
        name: The weight.
        bias: The bias that was added; empty without.
        out_dim: The dim of the weight along which its rows lie.
        rows: Which row of the weight made each entry. The tensor's shape, int32, mostly expanded.
        scale: What entries were multiplied by since.
        version: Of the tensor; what is written to it later makes this void.
    """

    name: str
    bias: str
    out_dim: int
    rows: Tensor
    scale: float
    version: int

    def moved(self, rows: Tensor, result: Tensor) -> Source:
        """Return the source of a tensor with the same entries elsewhere."""
        return replace(self, rows=rows, version=_version(result))


@dataclass(frozen=True, eq=False, slots=True)
class Product:
    """One product of queries with keys.

    Attributes:
        source: What made the queries.
        operands: Queries and keys, and how to call again with other queries.
        heads: The rows of the weight that make each head's channels. Shape ``[H, d]``.
        head_of: The head of each matrix of the queries, in memory order. Shape ``[L]``.
        is_attention: Whether a softmax over keys is sure to follow.
    """

    source: Source
    operands: Operands
    heads: Tensor
    head_of: Tensor
    is_attention: bool

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.source.name


OnProduct: TypeAlias = Callable[[Product], Tensor | None]
"""Told before the call; may return other queries to call with."""


@dataclass(eq=False)
class Trail:
    """What became of projections and products by the end of a forward.

    Attributes:
        uses: How many calls take each parameter.
        taken: Rows of each weight whose outputs anything else takes than a product, as queries.
        softmaxed: Weights whose products a softmax over keys takes.
        others: Weights whose products anything takes that sees what all keys have in common.
    """

    uses: Counter[str] = field(default_factory=Counter)
    taken: dict[str, set[int]] = field(default_factory=dict)
    softmaxed: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)


class ProductMode(TorchFunctionMode):
    """Tells of all products of queries with keys whose queries known parameters made.

    Args:
        parameters: All parameters of the model by name.
        on_product: Is told.

    Attributes:
        trail: What became of projections and products.
    """

    def __init__(self, parameters: Mapping[str, Tensor], on_product: OnProduct) -> None:
        super().__init__()
        self.trail = Trail()
        self._parameters = dict(parameters)
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self._on_product = on_product
        self._sources: Any = WeakIdKeyDictionary()
        self._logits: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = args, kwargs
        # What is computed here is no call of the model's, for other modes to see.
        with torch._C.DisableTorchFunction():
            product = self._product(name, args, kwargs)
            other = None if product is None else self._on_product(product)
            if product is not None and other is not None:
                given = product.operands.call_with(other)
        result = func(*given[0], **given[1])
        if has_tensor(result):
            with torch._C.DisableTorchFunction():
                self._follow(func, name, args, kwargs, result, product)
        return result

    def _product(self, name: str, args: tuple[Any, ...], kwargs: Any) -> Product | None:
        operands = operands_of(name, args, kwargs)
        if operands is None or id(operands.keys_given) in self._names:
            return None
        source = self._known(operands.given)
        if source is None:
            return None
        found = _heads(operands.arranged(source.rows))
        if found is None:
            return None
        return Product(source, operands, *found, is_attention=operands.is_attention)

    def _known(self, tensor: Tensor) -> Source | None:
        source: Source | None = self._sources.get(tensor)
        return source if source is not None and source.version == _version(tensor) else None

    def _follow(
        self, func: Any, name: str, args: Any, kwargs: Any, result: Any, product: Product | None
    ) -> None:
        values = [v for value in (*args, *kwargs.values())
                  for v in (value if isinstance(value, list | tuple) else (value,))
                  if isinstance(v, Tensor)]  # fmt: skip
        for value in values:
            if id(value) in self._names and result is not value:
                self.trail.uses[self._names[id(value)]] += 1
        sources = [v for v in values if v in self._sources]
        logits: frozenset[str] = frozenset().union(*(self._logits.get(v, ()) for v in values))
        if logits:
            self._follow_logits(name, args, kwargs, result, logits)
        if product is not None:
            self._take([v for v in sources if v is not product.operands.given])
            if product.is_attention:
                self.trail.softmaxed.add(product.name)
            else:
                self._logits[result] = frozenset((product.name,))
        elif not sources or not self._go_on(func, name, args, kwargs, result, sources):
            self._take(sources)
            self._begin(func, args, kwargs, result)

    def _begin(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Start a trail where a known weight makes channels of something."""
        recognise = RECOGNISERS.get(func)
        if recognise is None or not isinstance(result, Tensor):
            return
        try:
            calls = list(recognise(*args, **kwargs))
        except TypeError:
            return
        for call in calls:
            geometry, name = call.geometry, self._names.get(id(call.weight))
            bias = "" if call.bias is None else self._names.get(id(call.bias))
            if (
                name is None
                or bias is None
                or call.block
                or (call.bias is not None and call.bias.ndim != 1)
            ):
                continue
            if isinstance(geometry, ProductGeometry) and geometry.by_output:
                behind = 0
            elif isinstance(geometry, ConvGeometry) and geometry.groups == 1:
                behind = len(geometry.kernel)
            else:
                continue
            size = call.weight.shape[geometry.out_dim]
            if result.ndim <= behind or result.shape[-1 - behind] != size:
                continue
            rows = torch.arange(size, dtype=torch.int32, device="cpu")
            rows = rows.reshape(-1, *(1,) * behind).expand(result.shape)
            made = Source(name, bias, geometry.out_dim, rows, 1.0, _version(result))
            self._sources[result] = made

    def _go_on(
        self, func: Any, name: str, args: Any, kwargs: Any, result: Any, sources: list[Tensor]
    ) -> bool:
        """Follow a trail through a call that moves or scales; return whether this one does."""
        moved = None
        if len(sources) == 1 and (source := self._source_before(sources[0], result)) is not None:
            moved = _moved(func, name, args, kwargs, result, source)
        if moved is None:
            return False
        results = [result] if isinstance(result, Tensor) else list(result)
        for tensor, own in zip(results, moved, strict=True):
            self._sources[tensor] = own
        return True

    def _source_before(self, tensor: Tensor, result: Any) -> Source | None:
        """Return a tensor's source as it was before a call that may have written to it."""
        source: Source = self._sources[tensor]
        return source if result is tensor or source.version == _version(tensor) else None

    def _take(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            source = self._sources[tensor]
            self.trail.taken.setdefault(source.name, set()).update(_narrowed(source.rows).tolist())

    def _follow_logits(
        self, name: str, args: Any, kwargs: Any, result: Any, names: frozenset[str]
    ) -> None:
        """See whether what all keys of a query have in common makes no difference."""
        if not isinstance(result, Tensor):
            self.trail.others |= names
            return
        if name in _SOFTMAX:
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            over_keys = dim in (-1, result.ndim - 1)
            (self.trail.softmaxed if over_keys else self.trail.others).update(names)
            return
        tensors = [v for v in args if isinstance(v, Tensor) and v not in self._logits]
        width = result.shape[-1:]
        passes = name in _ADDING | _MASKING | _COPYING
        passes = passes or (
            name in _MULTIPLYING | _DIVIDING and all(v.shape[-1:] in ((), (1,)) for v in tensors)
        )
        before = [v.shape[-1:] for v in args if isinstance(v, Tensor) and v in self._logits]
        passes = passes or name in ("view", "reshape", "unsqueeze", "expand")
        if passes and all(shape == width for shape in before):
            self._logits[result] = names
        else:
            self.trail.others |= names


def _moved(
    func: Any, name: str, args: Any, kwargs: Any, result: Any, source: Source
) -> list[Source] | None:
    """Return the sources of what a call made; ``None`` if it did more than move or scale."""
    rows = source.rows
    if name in _MULTIPLYING or name in _DIVIDING:
        factor = _factor(name, args, kwargs, rows.shape)
        if factor is None or not isinstance(result, Tensor) or result.shape != rows.shape:
            return None
        return [replace(source.moved(rows, result), scale=source.scale * factor)]
    if name in _COPYING or (name == "dropout" and _is_inert(args, kwargs)):
        is_same = isinstance(result, Tensor) and result.shape == rows.shape
        return [source.moved(rows, result)] if is_same else None
    rest = (*args[1:], *kwargs.values())
    if not args or any(isinstance(v, Tensor | torch.dtype) for v in rest):
        return None
    if func not in _GETTERS and name not in _MOVING:
        return None
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if not all(v is None or v is ... or isinstance(v, int | slice) for v in index):
            return None
    if name in ("view", "reshape"):  # the other memory may be cut in places of its own
        found: Any = rows.reshape(result.shape)
    else:
        found = func(rows, *args[1:], **kwargs)
    results = [result] if isinstance(result, Tensor) else list(result)
    mirrored = [found] if isinstance(found, Tensor) else list(found)
    if [v.shape for v in results] != [v.shape for v in mirrored]:
        return None
    return [source.moved(own, tensor) for own, tensor in zip(mirrored, results, strict=True)]


def _factor(name: str, args: Any, kwargs: Any, shape: torch.Size) -> float | None:
    """Return the number that a call multiplies by; ``None`` if it is not one for all entries."""
    if len(args) != 2 or kwargs:
        return None
    whole, other = args
    if name in _MULTIPLYING and not (isinstance(whole, Tensor) and whole.shape == shape):
        whole, other = other, whole
    if not isinstance(whole, Tensor) or isinstance(other, bool | complex):
        return None
    if isinstance(other, Tensor):
        if other.numel() != 1 or other.is_complex() or whole.shape != shape:
            return None
        other = float(other.detach())
    if not isinstance(other, int | float) or not 0 < abs(other) < float("inf"):
        return None
    return 1 / other if name in _DIVIDING else float(other)


def _is_inert(args: Any, kwargs: Any) -> bool:
    given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    return given.get("p", 0.5) == 0 or not given.get("training", True)


def _version(tensor: Tensor) -> int:
    """Return how often something was written to a tensor or to what it is a view of."""
    return 0 if tensor.is_inference() else tensor._version


def _narrowed(rows: Tensor) -> Tensor:
    """Return all rows that occur; dims along which the tensor is expanded are the same anyway."""
    for dim, stride in enumerate(rows.stride()):
        if stride == 0:
            rows = rows.narrow(dim, 0, min(1, rows.shape[dim]))
    return torch.unique(rows)  # type: ignore[no-any-return]


def _heads(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return each head's rows and the head of each matrix; ``None`` if that is not what they are.

    Args:
        rows: Which row made each entry of the queries. Shape ``[..., n, d]``.
    """
    if not rows.numel():
        return None
    first = rows[..., :1, :]
    if rows.stride(-2) != 0 and not bool((rows == first).all()):
        return None
    flat = first.reshape(-1, rows.shape[-1])
    heads, head_of = torch.unique(flat, dim=0, return_inverse=True)
    return (heads, head_of) if len(_narrowed(heads)) == heads.numel() else None
