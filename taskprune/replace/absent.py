"""What stands where the parts of a dropped task were: the code around them runs on unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn

from torch import Tensor, nn

from taskprune.errors import AbsentValueError, InputError, short


class Absent:
    """The value of everything that only a dropped task computed.

    Whatever torch computes from it is absent as well. What cannot be answered without the value,
    such as a number, a truth value or how many parts it unpacks into, raises
    :class:`~taskprune.errors.AbsentValueError`, and so does writing it into a tensor. There is one
    object, :data:`ABSENT`.
    """

    __slots__ = ()

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Absent:
        """Return absence, unless a tensor of others would be written to."""
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        target = args[0] if args else None
        if (writes and isinstance(target, Tensor)) or isinstance((kwargs or {}).get("out"), Tensor):
            _refuse(f"written into a tensor by `{name}`")
        return ABSENT

    def __getattr__(self, name: str) -> Absent:
        # Protocols that Python or a library asks for are honestly missing.
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_args: Any, **_kwargs: Any) -> Absent:
        return self

    def __getitem__(self, _: Any) -> Absent:
        return self

    def _computed(self, *_: Any) -> Absent:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _computed
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = _computed
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _computed
    __neg__ = __invert__ = _computed
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _computed
    __lt__ = __le__ = __gt__ = __ge__ = _computed

    def __iter__(self) -> Iterator[Any]:
        _refuse("unpacked or iterated over")

    def __len__(self) -> int:
        _refuse("asked for its length")

    def __bool__(self) -> bool:
        _refuse("used as a condition")

    def __int__(self) -> int:
        _refuse("used as a number")

    def __float__(self) -> float:
        _refuse("used as a number")

    def __index__(self) -> int:
        _refuse("used as a size or index")

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """Writing into what is absent changes nothing."""

    def __copy__(self) -> Absent:
        return self

    def __deepcopy__(self, _: Any) -> Absent:
        return self

    def __reduce__(self) -> str:
        return "ABSENT"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


class DroppedModule(nn.Module):
    """Takes the place of a module that only a dropped task used: no parameters, no work.

    Args:
        returns: The form of what the original returned in each mode, from :func:`form_of`, as JSON:
            ``{"eval": form, "train": form}``.

    Raises:
        InputError: It is no such form.
    """

    def __init__(self, returns: str) -> None:
        super().__init__()
        self.returns = returns
        self._forms = _forms_in(returns)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return absence in the form of the original's result."""
        mode, other = ("train", "eval") if self.training else ("eval", "train")
        return _absent_in(self._forms.get(mode, self._forms.get(other, "tensor")))

    def extra_repr(self) -> str:
        """Say nothing of the form, which can be long."""
        return ""


def form_of(value: Any) -> Any:
    """Return the nesting of tuples, lists and dicts around tensors, as JSON can hold it."""
    if value is None:
        return None
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [form_of(part) for part in value]}
    if isinstance(value, list):
        return {"list": [form_of(part) for part in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: form_of(part) for key, part in value.items()}}
    return "tensor"


def _absent_in(form: Any) -> Any:
    if form is None or form == "tensor":
        return None if form is None else ABSENT
    [(kind, parts)] = form.items()
    if kind == "dict":
        return {key: _absent_in(part) for key, part in parts.items()}
    return {"tuple": tuple, "list": list}[kind](map(_absent_in, parts))


def _forms_in(returns: str) -> dict[str, Any]:
    try:
        forms: dict[str, Any] = json.loads(returns)
        for form in forms.values():
            _absent_in(form)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            "Expected the form of what a dropped module returned, as `drop_task` notes it. Found "
            f"{short(returns[:80])}."
        ) from error
    return forms


def none_for_absent(_module: nn.Module, _args: Any, outputs: Any) -> Any:
    """Forward hook of the whole model: users find ``None`` where a dropped task's outputs were."""
    return _cleaned(outputs)


def _cleaned(node: Any) -> Any:
    if node is ABSENT:
        return None
    if isinstance(node, Mapping):
        cleaned = {key: _cleaned(child) for key, child in node.items()}
        if all(cleaned[key] is child for key, child in node.items()):
            return node
        return cleaned if type(node) is dict else _rebuilt(node, cleaned)
    if is_dataclass(node) and not isinstance(node, type):
        for field in fields(node):
            child = getattr(node, field.name)
            if (new := _cleaned(child)) is not child:
                object.__setattr__(node, field.name, new)
        return node
    if isinstance(node, tuple | list):
        parts = [_cleaned(child) for child in node]
        if all(new is old for new, old in zip(parts, node, strict=True)):
            return node
        return type(node)(*parts) if hasattr(node, "_fields") else type(node)(parts)
    return node


def _rebuilt(node: Mapping[Any, Any], cleaned: dict[Any, Any]) -> Any:
    """Return a mapping of the same class; one that is a dataclass too keeps its other fields."""
    kept = {key: child for key, child in cleaned.items() if child is not None}
    return type(node)(**kept) if is_dataclass(node) else type(node)(cleaned)  # type: ignore[call-arg]


def _refuse(how: str) -> NoReturn:
    raise AbsentValueError(
        f"A value that only the dropped task computes was {how}. Expected code outside of the "
        "task's own modules to hand it on or compute tensors from it. Move that code into a module "
        "of the task, or guard it by `if` on something that is known without it."
    )
