"""What people see in a terminal: what is going on, and what went wrong."""

from taskprune.terminal.plain_errors import plain_errors
from taskprune.terminal.stages import stages
from taskprune.terminal.table import plain_text, text_table

__all__ = ["plain_errors", "plain_text", "stages", "text_table"]
