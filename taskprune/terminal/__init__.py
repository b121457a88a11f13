"""What people see in a terminal: what is going on, and what went wrong."""

from taskprune.terminal.console import plain_errors, plain_text, stages, text_table

__all__ = ["plain_errors", "plain_text", "stages", "text_table"]
