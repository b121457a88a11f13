"""Stock architectures, built from their configuration with random weights."""

from architectures.architecture import Architecture

__all__ = ["Architecture"]
