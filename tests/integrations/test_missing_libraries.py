"""Where a library is missing, its integration says what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from taskprune.errors import MissingDependencyError


@pytest.mark.parametrize("library", ["transformers", "ultralytics", "lightning"])
def test_the_extra_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (library, f"{library}.pytorch", f"pytorch_{library}"):
        monkeypatch.setitem(sys.modules, name, None)
    module = f"taskprune.integrations.{library}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingDependencyError, match=rf"taskprune\[{library}\]"):
        importlib.import_module(module)
