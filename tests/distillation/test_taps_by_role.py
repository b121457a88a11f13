from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from distill_run import run
from distill_toys import TwoTaskNet, make_net, randomise, same_state, state
from torch import nn

from taskprune.distillation import Role, Tap, declared_roles, resolve_taps
from taskprune.driving.nets import FEATURE_MODULES, PanopticDrivingNet
from taskprune.errors import InputError


class Declared(TwoTaskNet):
    """Says itself what its parts are."""

    taskprune_roles: Mapping[str, Any] = {"backbone": ("stem", "st*ge"), "heads": ["near.0", "far"]}


def declared(seed: int) -> nn.Module:
    return randomise(Declared(), seed)


def test_a_role_chooses_the_modules_that_the_model_declares() -> None:
    net = declared(0)
    assert resolve_taps(net, [Role("heads")]) == (Tap("near.0"), Tap("far"))
    assert [t.module for t in resolve_taps(net, [Role("backbone"), "stem", Role("heads")])] == [
        *("stem", "stage", "near.0", "far")
    ]
    wrapped: Any = torch.compile(net, backend="eager")
    assert resolve_taps(wrapped, [Role("heads")]) == (Tap("near.0"), Tap("far"))


def test_roles_may_be_declared_on_the_object() -> None:
    net = make_net(0)
    net.taskprune_roles = {"trunk": ("stem", "stage")}  # type: ignore[assignment]
    assert resolve_taps(net, [Role("trunk")]) == (Tap("stem"), Tap("stage"))


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"roles `backbone`, `heads`.*the role `neck`"):
        resolve_taps(declared(0), [Role("neck")])
    with pytest.raises(InputError, match=r"TwoTaskNet declares no roles.*taskprune_roles = "):
        resolve_taps(make_net(0), [Role("stem")])  # a module of that name is no role


@pytest.mark.parametrize(
    "roles", ["backbone", {"backbone": "stem"}, {"backbone": ()}, {3: ("stem",)}, {"a": (None,)}]
)
def test_a_malformed_declaration_is_refused(roles: Any) -> None:
    net = declared(0)
    net.taskprune_roles = roles
    with pytest.raises(InputError, match=r"`Declared\.taskprune_roles` must map"):
        resolve_taps(net, [Role("backbone")])


def test_a_declared_module_that_is_not_there_is_refused() -> None:
    net = declared(0)
    net.taskprune_roles = {"neck": ("fpn",)}  # type: ignore[assignment]
    with pytest.raises(InputError, match="fits the tap `fpn`"):
        resolve_taps(net, [Role("neck")])


def test_all_declared_roles_are_the_default() -> None:
    chosen, default = declared(1), declared(1)
    expected = run(chosen, declared(0), taps=[Role("backbone"), Role("heads")])
    result = run(default, declared(0), taps=None)
    assert result.taps == expected.taps == tuple(map(Tap, ("stem", "stage", "near.0", "far")))
    assert same_state(state(default), state(chosen))


def test_backbone_and_encoder_are_the_roles_of_the_bundled_net() -> None:
    roles = declared_roles(PanopticDrivingNet.__new__(PanopticDrivingNet))
    assert list(roles) == ["backbone", "encoder"]
    assert (*roles["backbone"], *roles["encoder"]) == FEATURE_MODULES
