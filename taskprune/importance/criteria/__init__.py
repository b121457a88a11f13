"""The criteria, a file a published method."""
