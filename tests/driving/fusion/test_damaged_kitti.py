"""What is read from damaged files of KITTI's is a frame of finite numbers, or the file is named."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from damaged_files import damaged_bytes, outcomes, put
from PIL import Image

from taskprune.driving.fusion import FusionFrame, KittiObjects
from taskprune.driving.fusion.sensors import calibration_of
from taskprune.errors import DataError

LABELS = """\
Car 0.10 0 -1.57 600.0 170.0 700.0 230.0 1.50 1.60 4.00 2.00 1.70 20.00 -1.57
Pedestrian 0.00 2 0.20 10.0 170.0 60.0 200.0 1.7 0.8 0.9 -9.0 1.7 30.0 0.3
DontCare -1 -1 -10 0 0 10 10 -1 -1 -1 -1000 -1000 -1000 -10
"""
WORDS = (
    *("nan", "NaN", "inf", "-inf", "1e400", "1e39", "-1", "0", "1e7", "x", "", "0x1p3"),
    *("\0", "\xb2", "1.5", "2", "1 2", "1\n", "\u2028", "9" * 400),
)
FLOATS = (np.nan, np.inf, -np.inf, 3e38, -1e30, 1e-45)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    training = tmp_path / "training"
    for folder in ("image_2", "velodyne", "calib", "label_2"):
        (training / folder).mkdir(parents=True)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("000007\n")
    pixels = np.random.default_rng(1).integers(0, 255, (18, 62, 3), np.uint8)
    Image.fromarray(pixels).save(training / "image_2" / "000007.png")
    np.random.default_rng(0).normal(size=(9, 4)).astype("<f4").tofile(
        training / "velodyne" / "000007.bin"
    )
    calibration_of((62, 18)).write(training / "calib" / "000007.txt")
    (training / "label_2" / "000007.txt").write_text(LABELS)
    return tmp_path


def check(frame: FusionFrame) -> None:
    for tensor in (frame.points, frame.projection, frame.boxes):
        assert tensor.isfinite().all()
    assert frame.image.shape[0] == 3
    assert (frame.boxes[:, 3:6] > 0).all()
    assert len(frame.boxes) == len(frame.labels) == len(frame.difficulty)
    assert ((frame.difficulty >= 0) & (frame.difficulty <= 3)).all()


def other_words(text: str, n: int, *, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(n):
        lines = [line.split(" ") for line in text.splitlines()]
        words = rng.choice(lines)
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        yield "\n".join(" ".join(line) for line in lines).encode("latin-1", "replace")
    for _ in range(n // 4):
        whole = text.splitlines(keepends=True)
        place = rng.randrange(len(whole))
        whole[place] = rng.choice(("", whole[place].strip(), whole[place] * 2))
        yield "".join(whole).encode()


def other_points(data: bytes, n: int) -> Iterator[bytes]:
    rng = random.Random(0)
    for _ in range(n):
        numbers = np.frombuffer(data, "<f4").copy()
        numbers[rng.randrange(len(numbers))] = rng.choice(FLOATS)
        yield numbers.tobytes()


def png(width: int, height: int, *, kind: int = 2, rows: bytes = b"") -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_undamaged_files_are_read(root: Path) -> None:
    frame = KittiObjects(root)[0]
    check(frame)
    assert frame.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name",
    ["calib/000007.txt", "label_2/000007.txt", "velodyne/000007.bin", "image_2/000007.png", ""],
)
def test_damaged_files_are_refused_or_hold_a_frame(root: Path, name: str) -> None:
    path = root / "training" / name if name else root / "ImageSets" / "train.txt"
    good = path.read_bytes()

    def load(data: bytes) -> None:
        put(path, data)
        check(KittiObjects(root)[0])

    damaged = [*damaged_bytes(good, 400, seed=0)]
    if path.suffix == ".bin":
        damaged += other_points(good, 200)
    elif path.suffix == ".txt" and name:
        damaged += other_words(good.decode(), 400, seed=1)
    counts = outcomes(damaged, load, may_differ=True)
    assert counts["refused"] > 100


@pytest.mark.parametrize("name", ["calib/000007.txt", "label_2/000007.txt", "velodyne/000007.bin"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01", b"\0" * 5000, "folder", "huge", None]
)
def test_files_that_are_none_are_named(root: Path, name: str, content: bytes | str | None) -> None:
    path = root / "training" / name
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "huge":
        with path.open("wb") as file:
            file.truncate(10**12)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    if content == b"" and "calib" not in name:
        check(KittiObjects(root)[0])  # no objects, no points
        return
    with pytest.raises(DataError, match=path.name):
        KittiObjects(root)[0]


@pytest.mark.parametrize(
    "content",
    [
        png(60_000, 60_000),
        png(12_000, 9_000, rows=b"\0" * 100),
        png(2**31 - 1, 1),
        png(0, 5),
        png(7, 7, kind=5),
        b"GIF89a" + b"\0" * 50,
        b"",
    ],
    ids=["bomb", "small bomb", "wide", "empty", "bad kind", "gif", "nothing"],
)
def test_pictures_of_impossible_size_or_kind_are_refused(root: Path, content: bytes) -> None:
    put(root / "training" / "image_2" / "000007.png", content)
    with pytest.raises(DataError, match=r"000007\.png"):
        KittiObjects(root)[0]


@pytest.mark.parametrize("names", ["", "\n\n", "../000007", "/etc/passwd", "a\0b", "000007 \xff"])
def test_lists_of_no_names_are_refused(root: Path, names: str) -> None:
    (root / "ImageSets" / "train.txt").write_bytes(names.encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.txt"):
        KittiObjects(root)


def test_a_labelled_split_needs_its_labels(root: Path) -> None:
    (root / "training" / "label_2" / "000007.txt").unlink()
    with pytest.raises(DataError, match=r"000007\.txt"):
        KittiObjects(root)[0]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("Car 0.10 0", "Car 0.10 1.5"),
        ("Car 0.10 0", "Car 0.10 9"),
        ("Car 0.10 0", "Car 7 0"),
        ("1.50 1.60 4.00", "1.50 -1.60 4.00"),
        ("1.50 1.60 4.00", "0 1.60 4.00"),
        ("600.0 170.0 700.0", "800.0 170.0 700.0"),
        ("-1.57\nPed", "-1.57 Ped"),
        ("20.00 -1.57\n", "20.00\n"),
    ],
)
def test_labels_that_cannot_be_are_refused(root: Path, good: str, bad: str) -> None:
    assert good in LABELS
    (root / "training" / "label_2" / "000007.txt").write_text(LABELS.replace(good, bad))
    with pytest.raises(DataError, match=r"line 1 of .*label_2"):
        KittiObjects(root)[0]


def test_axes_that_are_no_rotation_are_refused(root: Path) -> None:
    path = root / "training" / "calib" / "000007.txt"
    lines = path.read_text().splitlines()
    for changed in ("R0_rect: " + " 0" * 9, "R0_rect: " + " 1" * 9, "R0_rect: 2 0 0 0 1 0 0 0 1"):
        path.write_text("\n".join([lines[0], changed, lines[2]]))
        with pytest.raises(DataError, match="rotation"):
            KittiObjects(root)[0]
    path.write_text("\n".join([*lines, lines[0]]))
    with pytest.raises(DataError, match="P2"):
        KittiObjects(root)[0]
