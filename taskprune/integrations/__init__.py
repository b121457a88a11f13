"""Pruned models in the libraries that train, store and run them: one file a library.

``taskprune.integrations.transformers``, ``.ultralytics`` and ``.lightning`` are imported by name,
each with the library that it is for.
"""
