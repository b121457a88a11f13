"""What people see in a terminal: what is going on, and what went wrong."""

from taskprune.terminal.console import lines, plain_errors, plain_text, stages, text_table

__all__ = ["lines", "plain_errors", "plain_text", "stages", "text_table"]
