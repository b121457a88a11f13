"""Models that libraries build from a name or a configuration, each with an input that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskprune.errors import InputError, MissingDependencyError
from taskprune.integrations import PRUNED_WEIGHTS

STOCK = {"timm": "timm", "hf": "transformers", "ultralytics": "ultralytics"}
"""The library of each prefix."""

TOKENS = 16
"""Length of the made-up texts."""

IMAGE = 224
"""Height and width of the made-up images for networks that take any."""

RANDOM = (
    "The weights are random: this tells what can be pruned, not what it costs a task. A file with "
    "`model()` loads trained ones (`taskprune init`)."
)


@dataclass(frozen=True, slots=True)
class StockModel:
    """A model of a library.

    Attributes:
        make: Makes the model.
        example: Makes inputs that it takes, of random values.
        note: What to know about it; empty if nothing.
    """

    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    note: str = ""


def stock_model(kind: str, name: str) -> StockModel:
    """Find a model in a library.

    Args:
        kind: A key of :data:`STOCK`.
        name: ``resnet50`` of timm, ``config.json`` or a folder with one for transformers,
            ``yolo11n.yaml`` or a ``.pt`` file for ultralytics.

    Raises:
        InputError: The library knows no such model, or the file is not there.
        MissingDependencyError: The library is not installed.
    """
    library = STOCK[kind]
    if not name:
        raise InputError(f"Expected the name of a model of {library}. Found `{kind}:` alone.")
    try:
        module = import_module(library)
    except ImportError as error:
        raise MissingDependencyError(
            f"`{kind}:{name}` takes {library}, which cannot be imported ({error}). Run `pip "
            f"install {library}`."
        ) from error
    builders = {"timm": _timm, "hf": _transformers, "ultralytics": _ultralytics}
    return builders[kind](module, name)


def _timm(timm: Any, name: str) -> StockModel:
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models())
        hint = f" Close ones: {', '.join(close)}." if close else ""
        raise InputError(f"timm {timm.__version__} has no model `{name}`.{hint}")
    size = timm.get_pretrained_cfg(name)
    shape = size.input_size if size is not None else (3, 224, 224)
    return StockModel(
        lambda: timm.create_model(name, pretrained=False),
        lambda: torch.rand(2, *shape, device="cpu"),
        RANDOM,
    )


def _transformers(transformers: Any, name: str) -> StockModel:
    path = Path(name)
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f"Expected the configuration of a transformers model at `{file}`. There is no such "
            "file. Download the model first; its folder holds `config.json`."
        )
    try:
        config = transformers.AutoConfig.from_pretrained(str(file))
    except Exception as error:
        raise InputError(f"transformers cannot read `{file}`: {error}") from error
    if getattr(config, "use_cache", False):
        config.use_cache = False  # what a cache holds are outputs of no task
    kind = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
    trained = path.is_dir() and any(folder.glob("*.safetensors"))
    pruned = path.is_dir() and (folder / PRUNED_WEIGHTS).is_file()

    def make() -> nn.Module:
        if pruned:
            integration = import_module("taskprune.integrations.transformers")
            model = integration.from_pretrained(folder)
        elif trained:
            model = kind.from_pretrained(str(folder), config=config, local_files_only=True)
        elif kind is transformers.AutoModel:
            model = kind.from_config(config)
        else:
            model = kind(config)
        return model  # type: ignore[no-any-return]

    def example() -> dict[str, torch.Tensor]:
        return _transformers_example(config, getattr(kind, "main_input_name", ""), name)

    return StockModel(make, example, "" if trained else RANDOM)


def _transformers_example(config: Any, takes: str, name: str) -> dict[str, torch.Tensor]:
    text = getattr(config, "get_text_config", lambda: config)()
    if takes == "pixel_values" or hasattr(config, "image_size"):
        size = getattr(config, "image_size", IMAGE)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (2, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": torch.rand(shape, device="cpu")}
    if getattr(text, "vocab_size", None) and not getattr(config, "is_encoder_decoder", False):
        return {"input_ids": torch.randint(0, text.vocab_size, (2, TOKENS), device="cpu")}
    raise InputError(
        f"What the model of `hf:{name}` takes cannot be told from its configuration. Write a file "
        "with `model()` and `example()` (`taskprune init`)."
    )


def _ultralytics(ultralytics: Any, name: str) -> StockModel:
    def make() -> nn.Module:
        return ultralytics.YOLO(name).model  # type: ignore[no-any-return]

    def example() -> torch.Tensor:
        return torch.rand(1, 3, 640, 640, device="cpu")

    return StockModel(make, example, RANDOM if name.endswith(".yaml") else "")
