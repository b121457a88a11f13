"""The criteria, a file each. A file that marks its criterion with ``@criterion`` names it."""
