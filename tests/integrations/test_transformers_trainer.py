"""A model of transformers is pruned while `Trainer` trains it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures.transformers_models import TRANSFORMERS_MODELS
from torch import Tensor, nn

import taskprune
from taskprune.errors import InputError
from taskprune.plan.plan import PruningPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of a library that is not ours
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None
        or importlib.util.find_spec("accelerate") is None,
        reason="transformers or accelerate is not installed",
    ),
]


def bert() -> nn.Module:
    own = next(a for a in TRANSFORMERS_MODELS if a.name == "transformers/bert")
    torch.manual_seed(0)
    model: nn.Module = own.make()
    return model


def example(number: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 67, (8,), generator=torch.Generator().manual_seed(number))
    return {"input_ids": ids, "labels": ids[1] % 3}


def how(model: nn.Module) -> taskprune.PruneResult:
    rows = [example(number) for number in range(8)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    tasks = {"class": taskprune.Task(loss=lambda outputs, _: outputs.loss)}
    return taskprune.prune(model, tasks, 0.3, data=[batch])


def trainer(folder: Path, model: nn.Module, callback: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=[example(number) for number in range(12)],
        callbacks=[callback],
    )


def test_a_model_is_pruned_while_it_trains_and_training_resumes(tmp_path: Path) -> None:
    from taskprune.integrations.transformers import PruneCallback, from_pretrained, save_pretrained

    model = bert()
    callback = PruneCallback(how, step=3)
    run = trainer(tmp_path, model, callback)
    run.train()
    assert run.model is model
    assert callback.result is not None
    assert callback.plan is not None
    shapes = {p.shape for p in callback.result.model.parameters()}
    assert {p.shape for p in model.parameters()} == shapes
    moments = run.optimizer.optimizer.state
    assert {p: s["exp_avg"].shape for p, s in moments.items()} == {
        p: p.shape for p in model.parameters()
    }
    assert {float(state["step"]) for state in moments.values()} == {6.0}
    assert run.state.global_step == 6

    save_pretrained(tmp_path / "done", model, callback.plan, report=callback.result.report)
    ids = example(0)["input_ids"][None]
    found = from_pretrained(tmp_path / "done")(input_ids=ids).logits
    assert torch.equal(found, model.eval()(input_ids=ids).logits)

    plan = PruningPlan.load(tmp_path / "checkpoint-4" / "plan.json")
    assert not (tmp_path / "checkpoint-2" / "plan.json").exists()
    again = taskprune.apply_plan(bert(), plan, verify=False)
    later = PruneCallback(how, step=3, plan=plan)
    run = trainer(tmp_path, again, later)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert later.result is None
    for own, other in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_trainings_in_which_it_cannot_work_are_refused(tmp_path: Path) -> None:
    from taskprune.integrations.transformers import PruneCallback

    for wrong in ({}, {"step": 1, "epoch": 1}, {"step": 0}, {"epoch": 1.5}):
        with pytest.raises(InputError, match="when to prune"):
            PruneCallback(how, **wrong)
    with pytest.raises(InputError, match="comes to step=7"):
        trainer(tmp_path, bert(), PruneCallback(how, step=7)).train()
