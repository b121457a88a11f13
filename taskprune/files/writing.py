"""Files that appear whole or not at all, and folders to write them to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from taskprune.errors import CheckpointError, InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a file to write beside `path`, which takes its place once the block is through.

    It is on the disk by then: killed at any moment, the old or the new file is there, whole. After
    an exception what was at `path` is still there, and the unfinished file is gone. What a kill
    leaves behind, :func:`clear_unfinished` removes.

    Raises:
        OSError: The folder is missing or cannot be written to, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"Expected the name of a file to write. `{path}` is a folder")
    # A name of its own each time, because nothing keeps two processes from writing one file.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # `mkstemp` makes files that only their owner can read.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_unfinished(path: Path) -> None:
    """Remove what killed writers of `path` have left; only who holds its lock may."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that could not be written, and say what there is to do.

    Raises:
        CheckpointError: Writing failed, for example on a full disk.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"`{path}` could not be written ({error}). What was there before is untouched: free "
            "some space or mend the folder, and try again."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file of text in one go.

    Raises:
        CheckpointError: It could not be written; what was there before still is.
    """
    with writing(path), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    # There is no other way to ask.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def make_folder(path: Path, *, option: str) -> None:
    """Make a folder, unless it is there, and check that files can be made in it.

    Args:
        path: The folder; those above it are made, too.
        option: What the user sets it with, for the message.

    Raises:
        InputError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Expected a folder to write to at `{path}`. Making it failed: {error}. Choose another "
            f"with {option}."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(
            f"Expected a folder to write to at `{path}`. It is read-only. Choose another with "
            f"{option}, or change its permissions."
        )


def make_folder_of(path: Path, *, option: str) -> None:
    """Make the folder of a file that is to be written later, and check that it can be.

    Args:
        path: The file.
        option: What the user sets it with, for the message.

    Raises:
        InputError: Its folder cannot be made or written to, or the file is a folder or read-only.
    """
    if path.is_dir():
        raise InputError(
            f"Expected the name of a file to write. `{path}` is a folder. Choose another name with "
            f"{option}."
        )
    make_folder(path.parent, option=option)
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(
            f"Expected a file that can be written. `{path}` is read-only. Choose another with "
            f"{option}."
        )
