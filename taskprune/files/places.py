"""Places to write to, made and checked before hours of work end in a missing folder."""

from __future__ import annotations

import os
from pathlib import Path

from taskprune.errors import InputError


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
