"""What people see in a terminal: what is going on, and what went wrong."""

from taskprune.terminal.plain_errors import plain_errors
from taskprune.terminal.stages import stages

__all__ = ["plain_errors", "stages"]
