"""Files that nobody finds half of, and that say what was written or are refused.

One discipline for all that taskprune writes and reads again: replaced in one go, sealed by a
checksum over all that has meaning, bounded before anything is made of it, every field checked.
"""

from typing import TYPE_CHECKING, Any

from taskprune.files.checked_json import (
    as_record,
    as_type,
    parse_json,
    read_bytes,
    sealed,
    unsealed,
)
from taskprune.files.json_lines import JsonLines
from taskprune.files.locking import locked, only_user_of
from taskprune.files.writing import (
    clear_unfinished,
    make_folder,
    make_folder_of,
    replacing,
    write_text,
    writing,
)

if TYPE_CHECKING:
    from taskprune.files.sealed_tensors import read_sealed, read_texts, write_sealed

__all__ = [
    "JsonLines",
    "as_record",
    "as_type",
    "clear_unfinished",
    "locked",
    "make_folder",
    "make_folder_of",
    "only_user_of",
    "parse_json",
    "read_bytes",
    "read_sealed",
    "read_texts",
    "replacing",
    "sealed",
    "unsealed",
    "write_sealed",
    "write_text",
    "writing",
]


if not TYPE_CHECKING:  # which would take any name for one that exists

    def __getattr__(name: str) -> Any:
        """Import what holds tensors when it is first used: texts are written without torch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from taskprune.files import sealed_tensors

        return getattr(sealed_tensors, name)
