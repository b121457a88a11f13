"""Write a run's files so that a kill or a full disk loses nothing that was there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from taskprune.errors import CheckpointError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file that could not be written, and say what there is to do.

    Raises:
        CheckpointError: Writing failed, for example on a full disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"`{path}` could not be written ({error}). What was saved there before is untouched: "
            "free some space or mend the folder, and the same call goes on from it. The student in "
            "memory keeps the weights of the last step."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a name to write to, which takes the place of ``path`` once the block is through.

    The name is always the same, so that what a kill leaves there is overwritten by the next try.

    Raises:
        CheckpointError: Writing failed. What was at ``path`` stays, and the unfinished file, which
            takes the very space that is missing, is removed.
    """
    temporary = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        except (OSError, SafetensorError):
            temporary.unlink(missing_ok=True)
            raise
