"""A module is pruned while Lightning trains it, with all that the trainer holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import taskprune
from taskprune.errors import CheckpointError, InputError

FOUND = [name for name in ("lightning", "pytorch_lightning") if importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # those of a library that is not ours
    pytest.mark.skipif(not FOUND, reason="lightning is not installed"),
]


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 6, generator=draw), torch.randint(0, 3, (8,), generator=draw))
        for _ in range(4)
    ]


def loader() -> Any:
    return DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]


def how(module: nn.Module) -> taskprune.PruneResult:
    tasks = {
        "class": taskprune.Task(loss=lambda outputs, batch: F.cross_entropy(outputs, batch[1]))
    }
    return taskprune.prune(module, tasks, 0.4, data=batches())


def trainer(folder: Path, *callbacks: Any, epochs: int = 4) -> Any:
    from lightning_net import pl

    saving = pl.callbacks.ModelCheckpoint(
        folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1
    )
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks, saving],
    )


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    assert weights(found).keys() == weights(expected).keys()
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], tensor)


def test_a_module_is_pruned_in_training_and_its_checkpoints_load(tmp_path: Path) -> None:
    from lightning_net import Net

    from taskprune.integrations.lightning import PruneCallback

    torch.manual_seed(0)
    module: Any = Net(width=20)
    callback = PruneCallback(how, epoch=2)
    run = trainer(tmp_path, callback)
    run.fit(module, loader())
    assert callback.result is not None
    shapes = [p.shape for p in callback.result.model.parameters()]
    assert [p.shape for p in module.parameters()] == shapes
    assert module.first.out_features < 20
    assert {p: s["exp_avg"].shape for p, s in run.optimizers[0].state.items()} == {
        p: p.shape for p in module.parameters()
    }
    assert {float(state["step"]) for state in run.optimizers[0].state.values()} == {16.0}
    assert run.optimizers[0].param_groups[0]["lr"] == 0.01 * 0.5**4

    assert_equal(Net.load_from_checkpoint(tmp_path / "epoch=3.ckpt"), module)
    assert Net.load_from_checkpoint(tmp_path / "epoch=1.ckpt").first.out_features == 20
    with pytest.raises(CheckpointError, match="Found one of it whole"):
        module.on_load_checkpoint({})

    torch.manual_seed(1)
    resumed, again = Net(width=20), PruneCallback(how, epoch=2)
    trainer(tmp_path / "again", again).fit(
        resumed, loader(), ckpt_path=tmp_path / "epoch=2.ckpt", weights_only=False
    )
    assert again.result is None
    assert_equal(resumed, module)


def test_averages_that_lightning_keeps_are_pruned_along(tmp_path: Path) -> None:
    from lightning_net import Net, pl

    from taskprune.integrations.lightning import PruneCallback

    torch.manual_seed(0)
    module, callback = Net(), PruneCallback(how, epoch=2)
    averaging = pl.callbacks.WeightAveraging()
    trainer(tmp_path, averaging, callback).fit(module, loader())
    assert {p.shape for p in averaging._average_model.module.parameters()} == {
        p.shape for p in module.parameters()
    }
    assert module(batches()[0][0]).isfinite().all()


def test_trainings_in_which_it_cannot_work_are_refused(tmp_path: Path) -> None:
    from lightning_net import Net, Whole

    from taskprune.integrations.lightning import PruneCallback

    with pytest.raises(InputError, match="when to prune"):
        PruneCallback(how, epoch=0)
    with pytest.raises(InputError, match="goes on after epoch 4"):
        trainer(tmp_path, PruneCallback(how, epoch=4)).fit(Net(), loader())
    with pytest.raises(InputError, match="Prunable"):
        trainer(tmp_path, PruneCallback(how, epoch=1)).fit(Whole(), loader())
