"""Writing a file so that nobody ever finds half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Provide a file to write beside `path`, which takes its place once the block is through.

    After an exception what was at `path` is still there, and the unfinished file is gone.

    Raises:
        OSError: The folder is missing or cannot be written to, or `path` is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"Expected the name of a file to write. `{path}` is a folder")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # `mkstemp` makes files that only their owner can read.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    # There is no other way to ask.
    mask = os.umask(0)
    os.umask(mask)
    return mask
