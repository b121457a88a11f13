"""Stock architectures, built from their configuration with random weights."""

from architectures.architecture import Architecture
from architectures.timm_models import TIMM_MODELS
from architectures.torchvision_models import TORCHVISION_MODELS
from architectures.transformers_models import TRANSFORMERS_MODELS

__all__ = ["Architecture", "architectures"]


def architectures() -> tuple[Architecture, ...]:
    """Return all architectures, a library after the other; none is built and nothing imported."""
    return (*TORCHVISION_MODELS, *TIMM_MODELS, *TRANSFORMERS_MODELS)
