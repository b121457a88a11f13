"""The command lines of the toolkit."""
