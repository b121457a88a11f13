"""Paths of outputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from taskprune.calling import flatten_outputs
from taskprune.calling.outputs import matching_paths, resolve_paths
from taskprune.errors import InputError

T = torch.zeros(1)


@dataclass
class Boxes:
    boxes: Tensor
    count: int


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    ("outputs", "paths"),
    [
        (T, ["output"]),
        ((T, T), ["0", "1"]),
        ([T, [T, T]], ["0", "1.0", "1.1"]),
        ({"lane": T, "note": "text"}, ["lane"]),
        ({"detection": Boxes(T, 3), "lane": T}, ["detection.boxes", "lane"]),
        (OrderedDict(logits=T, aux=(T,)), ["logits", "aux.0"]),
        (Pair(T, T), ["left", "right"]),
        ({3: T}, ["3"]),
        ("nothing", []),
    ],
)
def test_paths_follow_the_structure(outputs: object, paths: list[str]) -> None:
    assert list(flatten_outputs(outputs)) == paths


def test_a_prefix_takes_everything_below_it_and_no_more() -> None:
    paths = ["detection.boxes", "detection.logits", "detections"]
    assert matching_paths("detection", paths) == ("detection.boxes", "detection.logits")
    assert matching_paths("detections", paths) == ("detections",)


def test_an_unknown_output_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"'lane'.*'lanes'.*'boxes', 'area'"):
        resolve_paths({"lane": ("lanes",)}, ["boxes", "area"])
