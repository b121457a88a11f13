"""Pruned models in the libraries that train, store and run them: one file a library.

``taskprune.integrations.transformers``, ``.ultralytics`` and ``.lightning`` are imported by name,
each with the library that it is for.
"""

PRUNED_WEIGHTS = "taskprune_model.safetensors"
"""What a folder of ``taskprune.integrations.transformers.save_pretrained`` holds.

Not ``model.safetensors``, whose layers transformers draws at random where sizes differ and it is
told to ignore that.
"""
