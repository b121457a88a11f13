"""Pruned models of Hugging Face transformers: folders like its own, and pruning by its trainer.

``save_pretrained`` of such a model stores a configuration that says the original's widths, and
weights of others. The pair here stores the plan beside both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskprune.errors import (
    CheckpointError,
    InputError,
    MissingDependencyError,
    TaskPruneError,
    short,
)
from taskprune.files import as_type, make_folder, write_text, writing
from taskprune.front.result import PruneResult
from taskprune.integrations import PRUNED_WEIGHTS
from taskprune.integrations.model_card import model_card
from taskprune.integrations.plain_config import prune_to_config
from taskprune.integrations.schedule import check_when
from taskprune.plan.plan import PruningPlan
from taskprune.report.making import unreadable_files
from taskprune.report.record import PruneReport
from taskprune.restore.process import preserved_rng
from taskprune.rewrite import apply_plan, carry_over
from taskprune.rewrite.checkpoint import load_checkpoint, read_header, save_checkpoint
from taskprune.rewrite.surgery import UndoLog, skeleton, store_attributes, tensor_shapes

try:
    import transformers
except ImportError as error:
    raise MissingDependencyError(
        "`taskprune.integrations.transformers` needs Hugging Face transformers. Run `pip install "
        f'"taskprune[transformers]"` ({error}).'
    ) from error

__all__ = ["PruneCallback", "from_pretrained", "prune_to_config", "save_pretrained"]

PLAN, REPORT, CARD = "plan.json", "report.json", "README.md"
"""The plan and the figures, to read, and the model card."""


def save_pretrained(
    folder: str | Path,
    model: nn.Module,
    plan: PruningPlan,
    *,
    report: PruneReport | None = None,
    base_model: str | None = None,
) -> None:
    """Write a pruned model of transformers to a folder that :func:`from_pretrained` reads.

    It holds the original's ``config.json``, ``generation_config.json`` where the model generates,
    weights and plan in ``taskprune_model.safetensors`` (see :func:`taskprune.save_checkpoint`), the
    plan as ``plan.json``, and a model card in ``README.md``. Tokenizers and processors write
    themselves there with ``save_pretrained``, as ever.

    Before anything is written, the model is built from the configuration on the meta device and
    pruned, so that what cannot be read again is refused.

    Args:
        folder: Made if it is not there.
        model: The pruned model, perhaps trained further.
        plan: The plan that made it; :func:`~taskprune.plan.compose` makes one of several.
        report: ``result.report``: its figures go into the card and into ``report.json``.
        base_model: What was pruned, for the card: an id on the Hub. Default: what the configuration
            says it was loaded from.

    Raises:
        InputError: ``model`` is not one of transformers, or the folder cannot be made.
        CheckpointError: Configuration and plan do not make the model, or a file cannot be written.
    """
    own = _checked_model(model)
    folder = Path(folder)
    config = _original_config(own, plan)
    _check_rebuilds(own, config, plan)
    make_folder(folder, option="`folder`")
    metadata = {"library": "transformers", "attn_implementation": _attention(own.config)}
    save_checkpoint(folder / PRUNED_WEIGHTS, model, plan, metadata=metadata)
    plan.save(folder / PLAN)
    with writing(folder / "config.json"):
        config.save_pretrained(folder)
        if own.can_generate():
            own.generation_config.save_pretrained(folder)
    (folder / REPORT).unlink(missing_ok=True)
    if report is not None:
        solved = unreadable_files(model, plan)
        report = replace(report, notes=tuple(n for n in report.notes if n not in solved))
        write_text(folder / REPORT, report.to_json())
    base = base_model if base_model is not None else str(config._name_or_path or "")
    write_text(folder / CARD, model_card(type(model).__name__, base, plan, report))


def from_pretrained(
    folder: str | Path,
    model_class: Callable[[Any], nn.Module] | None = None,
    *,
    attn_implementation: str | None = None,
) -> Any:
    """Read a pruned model from a folder of :func:`save_pretrained`.

    Args:
        folder: A local folder. For a model on the Hub, ``huggingface_hub.snapshot_download`` makes
            one.
        model_class: The original's class, or what makes the original from a configuration. Default:
            the class of transformers that ``config.json`` names.
        attn_implementation: As for transformers' own ``from_pretrained``. Default: the one that
            the model had when it was saved.

    Returns:
        The pruned model in evaluation mode, on the CPU: its outputs equal those of the saved one to
        the bit, as long as both run the same attention.

    Raises:
        CheckpointError: A file is missing, damaged, or does not fit.
        InputError: ``model_class`` is needed.
    """
    folder = Path(folder)
    header = read_header(folder / PRUNED_WEIGHTS)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        config._attn_implementation = attn_implementation or as_type(
            Mapping[str, str | None], header.metadata.get("attn_implementation"), "`metadata`"
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected the configuration of a transformers model in `{folder}`. transformers "
            f"{transformers.__version__} cannot read it: {error}"
        ) from error
    make = model_class or _class_of(config, folder)
    with preserved_rng():  # weights are drawn, only to be replaced
        model = load_checkpoint(folder / PRUNED_WEIGHTS, lambda: make(config)).eval()
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(
            folder, local_files_only=True
        )
    return model


class PruneCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Prunes the model in the middle of a training by ``transformers.Trainer``.

    The model, its optimizer and scheduler stay the objects that the trainer holds; moments are cut
    like their parameters (:func:`taskprune.rewrite.carry_over`). Checkpoints after that hold the
    plan beside the weights, as ``plan.json``. To resume from one, apply that plan to the model
    before the trainer is made, and pass it here. What was the best checkpoint before is forgotten,
    since its weights fit no more.

    Args:
        how: ``model -> result``, for example
            ``lambda model: taskprune.prune(model, tasks, 0.3, data=batches)``.
        step: Prune after this many steps of the optimizer.
        epoch: Or after this many epochs.
        plan: Of a run that is resumed after it was pruned; it is not pruned again.

    Attributes:
        result: What `how` has returned; ``None`` before, and in a run that was resumed.
        plan: The plan by which the model was pruned; ``None`` before.

    Raises:
        InputError: Not one of `step` and `epoch` is given, or not a whole number from 1 on; when
            training begins: it is spread over processes, whose models would have to change at once.
    """

    def __init__(
        self,
        how: Callable[[nn.Module], PruneResult],
        *,
        step: int | None = None,
        epoch: int | None = None,
        plan: PruningPlan | None = None,
    ) -> None:
        check_when(step, epoch)
        self.how = how
        self.step = step
        self.epoch = epoch
        self.plan = plan
        self.result: PruneResult | None = None

    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Refuse trainings whose models cannot change."""
        distributed = transformers.training_args.ParallelMode.DISTRIBUTED
        if args.parallel_mode == distributed or args.deepspeed or args.fsdp:
            raise InputError(
                "Expected a training in one process. This one is spread over several or sharded, "
                "where sizes cannot change in the middle. Prune before it starts."
            )
        late = self.step is not None and self.step > state.max_steps
        if late or (self.epoch is not None and self.epoch > state.num_train_epochs):
            raise InputError(
                f"Expected a training that comes to step={self.step}, epoch={self.epoch}, when the "
                f"model is to be pruned. Found one of {state.max_steps} steps in "
                f"{state.num_train_epochs} epochs."
            )

    def on_step_end(self, _args: Any, state: Any, _control: Any, **held: Any) -> None:
        """Prune after a step."""
        if self.step is not None and state.global_step == self.step:
            self._prune(state, held["model"], held["optimizer"])

    def on_epoch_end(self, _args: Any, state: Any, _control: Any, **held: Any) -> None:
        """Prune after an epoch."""
        if self.epoch is not None and round(state.epoch) == self.epoch:
            self._prune(state, held["model"], held["optimizer"])

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write the plan beside the weights."""
        if self.plan is not None:
            self.plan.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / PLAN)

    def _prune(self, state: Any, model: nn.Module, optimizer: Any) -> None:
        if self.plan is not None:
            return
        result = self.how(model)
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        carry_over(model, result.model, result.plan, optimizers=[inner])
        self.result, self.plan = result, result.plan
        state.best_metric = state.best_model_checkpoint = None


def _attention(config: Any) -> dict[str, str | None]:
    """Return which attention each part of a model runs, as transformers takes it."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {"": config} | {name: part for name, part in parts.items() if part is not None}
    return {name: part._attn_implementation for name, part in own.items()}


def _checked_model(model: nn.Module) -> Any:
    if not isinstance(model, transformers.PreTrainedModel):
        raise InputError(
            f"Expected a model of transformers. Found {type(model).__name__}; "
            "`taskprune.save_checkpoint` stores any module."
        )
    return model


def _original_config(model: Any, plan: PruningPlan) -> Any:
    """Return the configuration that the original was made from.

    Where the forward reads sizes from it, the pruned model's says those of the pruned model.
    """
    borrowed: Any = skeleton(model)
    back = (replace(change, before=change.value, value=change.before) for change in plan.attributes)
    store_attributes(borrowed, back, UndoLog())
    config = copy.deepcopy(borrowed.config)
    config.architectures = [type(model).__name__]
    return config


def _check_rebuilds(model: Any, config: Any, plan: PruningPlan) -> None:
    """Check that configuration and plan make the model, without memory for weights."""
    try:
        with preserved_rng(), torch.device("meta"):
            built = apply_plan(type(model)(copy.deepcopy(config)), plan, verify=False, inplace=True)
    except TaskPruneError as error:
        raise CheckpointError(
            f"`{type(model).__name__}` made from its configuration is not the model that the plan "
            f"was made for: {error} What was changed by hand after it was built is not in "
            "`config`; `taskprune.save_checkpoint` stores the model without it."
        ) from error
    found, expected = tensor_shapes(built), tensor_shapes(model)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"Expected the model that configuration and plan make, with `{name}` of shape "
                f"{found.get(name, '(none)')}. Found {expected.get(name, 'no such tensor')}. Pass "
                "the pruned model with its plan, and for one pruned twice `compose(first, second)`."
            )


def _class_of(config: Any, folder: Path) -> Callable[[Any], nn.Module]:
    name = (config.architectures or [""])[0]
    found = getattr(transformers, name, None) if name else None
    if found is None:
        raise InputError(
            f"Expected a class of transformers {transformers.__version__} in the configuration in "
            f"`{folder}`. Found {short(name)}. Pass the original's class as `model_class`."
        )
    return found  # type: ignore[no-any-return]
