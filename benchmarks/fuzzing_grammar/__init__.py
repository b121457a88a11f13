"""A grammar of architectures: nets that follow from a seed, made of blocks that people use.

A net is a number: maps of rank 1 to 3 and tokens; each kind of block in many spellings, because the
spelling is what a trace sees.
"""

from fuzzing_grammar import (  # noqa: F401 - register their blocks
    convolutions,
    gates,
    layouts,
    recurrence,
    sequences,
    spectra,
    weights,
)
from fuzzing_grammar.nets import FuzzedNet, build
from fuzzing_grammar.parts import BLOCKS

__all__ = ["BLOCKS", "FuzzedNet", "build"]
