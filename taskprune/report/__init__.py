"""What a run has done, as a record, as tables and as a page."""
