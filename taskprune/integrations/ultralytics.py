"""Pruned YOLOs of ultralytics that train, validate, predict, export, save and load as ever.

Its trainer builds every network anew from its yaml file, which knows nothing of smaller widths, and
takes over the weights that fit: of a pruned network that would be next to none, without a word. A
network that was pruned here holds a yaml from which nothing can be built, and is trained as it is.

ultralytics is under AGPL-3.0; this file only calls it where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskprune.calling.task import Task
from taskprune.errors import InputError, MissingDependencyError
from taskprune.front.prune_settings import PruneSettings
from taskprune.front.pruning import prune as prune_network
from taskprune.front.result import PruneResult
from taskprune.importance import Importance
from taskprune.rewrite.surgery import tensor_shapes
from taskprune.solver.budget import Budget
from taskprune.solver.safety import Safety

try:
    import ultralytics
    from ultralytics.cfg import DEFAULT_CFG, get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.nn.modules import C2f
except ImportError as error:
    raise MissingDependencyError(
        "`taskprune.integrations.ultralytics` needs ultralytics. Run `pip install "
        f'"taskprune[ultralytics]"` ({error}).'
    ) from error

__all__ = ["PrunedYOLO", "batches", "load", "prune"]

BUILT_BY_NOBODY = (
    "This network was pruned, and its yaml file does not say how wide it is. To train it, load its "
    "file by `taskprune.integrations.ultralytics.load`."
)
"""Stands where a yaml names its first module: what looks it up fails with this text."""


class PrunedYOLO(ultralytics.YOLO):  # type: ignore[misc]
    """A ``YOLO`` whose network is trained as it is, not built anew. Made by :func:`prune`.

    Attributes:
        pruning: What pruning has returned: plan and report; ``None`` for one from a file.
    """

    pruning: PruneResult | None = None

    def train(self, trainer: Any = None, **kwargs: Any) -> Any:
        """Train the pruned network; arguments as those of ``YOLO.train``.

        Raises:
            InputError: It cannot be trained as it is: on several devices, on a data set of other
                classes, fused, or from other weights.
        """
        return super().train(_trainer(trainer or self._smart_load("trainer"), self.model), **kwargs)


def prune(
    yolo: Any,
    ratio: float | None = None,
    *,
    data: Iterable[Tensor] | Iterable[Mapping[str, Any]],
    budget: Budget | None = None,
    importance: str | Importance | None = None,
    safety: Safety | None = None,
    settings: PruneSettings | None = None,
) -> PrunedYOLO:
    """Make a YOLO smaller.

    Args:
        yolo: A ``YOLO("yolo11n.pt")`` or one from a yaml file; it is left as it was.
        ratio: Fraction of the parameters to remove, or `budget`: as for :func:`taskprune.prune`.
        data: Calibration batches. Images alone, ``[n, 3, height, width]`` from 0 to 1: every output
            is a task, and no labels are needed. Or batches as ultralytics trains on, dicts with
            such images as ``"img"`` and labels: the task is the network's own loss. :func:`batches`
            makes them from a data set.
        budget: What may remain.
        importance: The criterion.
        safety: Limits that hold whatever the scores say.
        settings: How to go about it.

    Returns:
        A YOLO with the smaller network, whose ``train``, ``val``, ``predict``, ``export`` and
        ``save`` are ultralytics' own. :func:`load` reads what it saves.

    Raises:
        InputError: `yolo` holds no network of its own, or see :func:`taskprune.prune`, which raises
            all else.
    """
    network = _network_of(yolo)
    kept = {name: getattr(network, name) for name in ("args", "yaml")}
    calibration = list(data)
    labelled = bool(calibration) and isinstance(calibration[0], Mapping)
    tasks = {yolo.task: Task(loss=_own_loss(network))} if labelled else None
    network.args, network.yaml = {}, {}  # numbers in them are of no size that a forward reads
    for block in _exported_otherwise(network):
        block.forward = block.forward_split
    result = prune_network(
        network,
        tasks,
        ratio,
        data=calibration,
        forward=_predicted,
        budget=budget,
        importance=importance,
        safety=safety,
        settings=settings,
    )
    smaller: Any = result.model
    for block in _exported_otherwise(smaller):
        del block.forward
    smaller.args = kept["args"]
    smaller.yaml = {**kept["yaml"], "backbone": [[-1, 1, BUILT_BY_NOBODY, []]]}
    pruned = _as_pruned(yolo, smaller, result)
    pruned.ckpt = {"model": smaller}  # so that training starts from the network, not from a file
    return pruned


def batches(
    yolo: Any, data: str | Path, *, imgsz: int = 640, batch: int = 8, n_batches: int = 8
) -> list[dict[str, Any]]:
    """Return labelled batches of a data set for :func:`prune`, from all over its training images.

    They are on the network's device.

    Args:
        yolo: What they are for; it says which labels are read.
        data: The yaml file of a data set, as ``YOLO.train`` takes it.
        imgsz: Height and width; images are resized and padded, nothing else is done to them.
        batch: Images a batch.
        n_batches: How many batches at most.

    Raises:
        InputError: The task has no such data sets.
    """
    if yolo.task not in ("detect", "segment", "pose", "obb"):
        raise InputError(
            f"Expected a YOLO that finds objects. Found one for `{yolo.task}`: pass batches of "
            "your own, or images alone, which need no labels."
        )
    found = check_det_dataset(str(data))
    args = get_cfg(DEFAULT_CFG, {"imgsz": imgsz, "task": yolo.task})
    images = build_yolo_dataset(args, found["train"], batch, found, mode="val", rect=False)
    n_images = min(len(images), batch * n_batches)
    chosen = [images[number * len(images) // n_images] for number in range(n_images)]
    made = []
    for first in range(0, n_images, batch):
        rows = images.collate_fn(chosen[first : first + batch])
        rows["img"] = rows["img"].float() / 255
        own = {n: v.to(yolo.device) if isinstance(v, Tensor) else v for n, v in rows.items()}
        made.append(own)
    return made


def load(path: str | Path) -> PrunedYOLO:
    """Read a pruned YOLO from a ``.pt`` file that it saved, or that its training wrote.

    Raises:
        InputError: The file holds a YOLO that was not pruned by :func:`prune`.
    """
    yolo = ultralytics.YOLO(path)
    backbone = getattr(yolo.model, "yaml", {}).get("backbone") or [[None] * 3]
    if backbone[0][2] != BUILT_BY_NOBODY:
        raise InputError(
            f"Expected a YOLO that `taskprune.integrations.ultralytics.prune` made. `{path}` holds "
            "another; `ultralytics.YOLO` loads it."
        )
    return _as_pruned(yolo, yolo.model, None)


def _network_of(yolo: Any) -> Any:
    """Return a copy of the network that is free to be changed."""
    if not isinstance(yolo, ultralytics.YOLO) or not isinstance(yolo.model, nn.Module):
        raise InputError(
            f"Expected a `YOLO` with a network of PyTorch. Found {type(yolo).__name__}"
            + (f" of `{yolo.model}`." if isinstance(yolo, ultralytics.YOLO) else ".")
        )
    network: Any = copy.deepcopy(yolo.model)
    network.criterion = None  # it remembers the network that it was made for
    for module in network.modules():
        if getattr(module, "shape", None) is not None:
            module.shape = None  # a head that remembers sizes of its inputs would hold on to them
    return network


def _as_pruned(yolo: Any, network: nn.Module, result: PruneResult | None) -> PrunedYOLO:
    pruned = PrunedYOLO.__new__(PrunedYOLO)
    state = dict(yolo.__dict__)
    for name in ("_modules", "callbacks", "overrides"):
        state[name] = copy.copy(state[name])
    pruned.__dict__.update(state)
    pruned.model, pruned.pruning = network, result
    pruned.predictor = pruned.trainer = pruned.metrics = None
    return pruned


def _own_loss(network: Any) -> Any:
    """Return the loss that the network is trained by, of what :func:`_predicted` returns."""
    given = dict(network.args) if isinstance(network.args, Mapping) else vars(network.args)
    known = vars(DEFAULT_CFG).keys()
    network.args = get_cfg(DEFAULT_CFG, {k: v for k, v in given.items() if k in known})
    criterion, strides = network.init_criterion(), [int(stride) for stride in network.stride]

    def loss(outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        with_sizes = _with_features(outputs, batch["img"], strides)
        return criterion(with_sizes, batch)[0].sum()  # type: ignore[no-any-return]

    return loss


def _exported_otherwise(network: nn.Module) -> list[Any]:
    """Return the modules whose forward is another one, though equal, in what is exported.

    That one is traced, since it reads a width that the usual one does not.
    """
    return [module for module in network.modules() if isinstance(module, C2f)]


def _predicted(network: nn.Module, batch: Tensor | Mapping[str, Any]) -> Any:
    """Return what the head predicts before it is decoded, which is the same in both modes.

    Without the features that it hands on: were they outputs, none of their channels could go.
    """
    outputs = network(batch["img"] if isinstance(batch, Mapping) else batch)
    is_decoded = isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], dict)
    return _without_features(outputs[1] if is_decoded else outputs)


def _without_features(outputs: Any) -> Any:
    if not isinstance(outputs, dict):
        return outputs
    return {n: _without_features(value) for n, value in outputs.items() if n != "feats"}


def _with_features(outputs: Any, images: Tensor, strides: Sequence[int]) -> Any:
    """Put in features of which only height and width are right: losses read nothing else."""
    if not isinstance(outputs, dict):
        return outputs
    filled = {n: _with_features(value, images, strides) for n, value in outputs.items()}
    if "boxes" in filled:
        n_images, _, height, width = images.shape
        sizes = ((n_images, 1, -(-height // s), -(-width // s)) for s in strides)
        filled["feats"] = [images.new_zeros(size) for size in sizes]
    return filled


def _plain(value: Any) -> Any:
    """Return a number as it is, and any sequence as a list."""
    return value if isinstance(value, int) else list(value)


def _trainer(kind: Any, network: Any) -> Any:
    """Return a trainer that trains the network as it is."""

    class PrunedTrainer(kind):  # type: ignore[misc]
        """Hands out the pruned network where one would be built from a yaml file."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            del cfg, verbose
            own = weights if isinstance(weights, nn.Module) else network
            self._check(own)
            own = copy.deepcopy(own).float().requires_grad_(True)  # those from files have none
            own.criterion = None
            return own

        def _check(self, own: Any) -> None:
            if self.world_size > 1:
                raise InputError(
                    "Expected a training on one device: on several, ultralytics builds the network "
                    f"anew in other processes. Found `device={self.args.device}`."
                )
            if self.args.pretrained is False or tensor_shapes(own) != tensor_shapes(network):
                raise InputError(
                    "Expected a training from the pruned network's own weights. Found `pretrained="
                    f"{self.args.pretrained!r}`."
                )
            if own.is_fused():
                raise InputError(
                    "Expected a network with its batch normalisations. Found one that `fuse()` has "
                    "folded them into. Train before it is fused, or load it anew."
                )
            found = {"nc": len(own.names), "kpt_shape": getattr(own.model[-1], "kpt_shape", None)}
            for name, what in (("nc", "classes"), ("kpt_shape", "key points")):
                given, mine = self.data.get(name), found[name]
                if mine is not None and given is not None and _plain(given) != _plain(mine):
                    raise InputError(
                        f"Expected a data set of the {mine} {what} that the network was pruned "
                        f"for. Found {given}. Train the original on it, and prune that."
                    )

    PrunedTrainer.__name__ = PrunedTrainer.__qualname__ = f"Pruned{kind.__name__}"
    return PrunedTrainer
