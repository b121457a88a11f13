"""Read BDD100K's box labels: one frame list for a split, or one file for an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskprune.errors import DataError, InputError

LARGEST = 1e9
"""Pixels lie below it."""

Boxes = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Left, top, right and bottom border in pixels ``[n, 4]``, and class numbers ``[n]``."""


def read_frame_list(path: Path, classes: Mapping[str, int]) -> dict[str, Boxes]:
    """Read the frame list of a split, as in ``labels/det_20/det_train.json``.

    Args:
        path: JSON file: a list of ``{"name", "labels": [{"category", "box2d"}]}``.
        classes: Category to class number; other categories are left out.

    Returns:
        Image name to its boxes.

    Raises:
        DataError: The file is no such list, or a box is not four numbers in order.
    """
    frames = _parsed(path)
    if not isinstance(frames, list):
        raise DataError(
            f"{path}: expected a list of frames. Found {type(frames).__name__}. "
            "Use the detection labels of BDD100K's 2020 release."
        )
    found: dict[str, Boxes] = {}
    for number, frame in enumerate(frames):
        where = f"{path}, frame {number}"
        name = frame.get("name") if isinstance(frame, dict) else None
        if not isinstance(name, str):
            raise DataError(f"{where}: expected an object with a `name`. Found {_short(frame)}.")
        if name in found:
            raise DataError(f"{where}: expected each image once. Found {name!r} again. Remove one.")
        found[name] = _boxes(frame.get("labels"), classes, f"{where} ({name})")
    return found


def read_image_labels(path: Path, classes: Mapping[str, int]) -> Boxes:
    """Read the labels of one image in BDD100K's older layout, ``labels/100k/train/*.json``.

    Args:
        path: JSON file: ``{"frames": [{"objects": [{"category", "box2d"}]}]}``.
        classes: Category to class number; other categories are left out.

    Raises:
        DataError: The file is not of that form, or a box is not four numbers in order.
    """
    record = _parsed(path)
    frames = record.get("frames") if isinstance(record, dict) else None
    if not (isinstance(frames, list) and len(frames) == 1 and isinstance(frames[0], dict)):
        raise DataError(
            f"{path}: expected an object with one entry in `frames`. Found {_short(record)}."
        )
    return _boxes(frames[0].get("objects"), classes, str(path))


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a JSON file. Found one that cannot be read ({error}). "
            "Copy or download it again."
        ) from error


def _boxes(labels: Any, classes: Mapping[str, int], where: str) -> Boxes:
    # BDD100K leaves the list out, or null, where an image has no object.
    if labels is None:
        labels = []
    if not isinstance(labels, list):
        raise DataError(f"{where}: expected a list of labels. Found {_short(labels)}.")
    borders: list[tuple[float, ...]] = []
    numbers: list[int] = []
    for index, label in enumerate(labels):
        category = label.get("category") if isinstance(label, dict) else None
        if not isinstance(category, str):
            raise DataError(
                f"{where}, label {index}: expected an object with a `category`. "
                f"Found {_short(label)}."
            )
        if category in classes:
            borders.append(_borders(label.get("box2d"), f"{where}, label {index} ({category})"))
            numbers.append(classes[category])
    return np.array(borders, np.float64).reshape(-1, 4), np.array(numbers, np.int64)


def _borders(box: Any, where: str) -> tuple[float, ...]:
    values: list[Any] = []
    if isinstance(box, dict):
        values = [box.get(key) for key in ("x1", "y1", "x2", "y2")]
    if not values or not all(_is_number(value) for value in values):
        raise DataError(
            f"{where}: expected `box2d` with numbers x1, y1, x2, y2 in pixels. Found {_short(box)}."
        )
    left, top, right, bottom = (float(value) for value in values)
    if right < left or bottom < top:
        raise DataError(
            f"{where}: expected x1 <= x2 and y1 <= y2. Found {_short(box)}. Swap the corners."
        )
    # x2 and y2 name the last pixel inside, so the border lies one further.
    return left, top, right + 1, bottom + 1


def _is_number(value: Any) -> bool:
    # Python's integers have no end, those of pictures do.
    return type(value) in (int, float) and abs(value) <= LARGEST


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_classes(classes: Mapping[str, int]) -> dict[str, int]:
    """Return a class map whose numbers run from 0 without gaps.

    Raises:
        InputError: It is empty or has gaps.
    """
    numbers = sorted(set(classes.values()))
    if not classes or numbers != list(range(len(numbers))):
        raise InputError(
            "`classes` must map category names to class numbers 0, 1, ... without gaps. "
            f"Found {dict(classes)!r}."
        )
    return dict(classes)
