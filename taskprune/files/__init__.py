"""Files that nobody finds half of, and that say what was written or are refused.

One discipline for all that taskprune writes and reads again: replaced in one go, sealed by a
checksum over all that has meaning, bounded before anything is made of it, every field checked.
"""

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
from taskprune.files.sealed_tensors import read_sealed, read_texts, write_sealed
from taskprune.files.writing import (
    clear_unfinished,
    make_folder,
    make_folder_of,
    replacing,
    write_text,
    writing,
)

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
