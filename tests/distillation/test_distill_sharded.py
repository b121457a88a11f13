from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_toys import make_batches, make_net, same_state, state
from launched_processes import run_in_processes
from safetensors.torch import load_file
from sharded_child import best, everything, without_labels
from torch import Tensor, nn

from taskprune.calling.forward import call_batch
from taskprune.distillation import DistillSettings
from taskprune.distillation.sharding import check_shardable
from taskprune.errors import InputError

CHILD = Path(__file__).with_name("sharded_child.py")
fsdp = pytest.importorskip("torch.distributed.fsdp")
is_supported = hasattr(getattr(fsdp, "FSDPModule", None), "set_reduce_scatter_unused_params")
needs_fsdp = pytest.mark.skipif(not is_supported, reason="torch without FSDP's unused parameters")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@needs_fsdp
def test_a_sharded_student_is_trained_as_on_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
        "FSDP_MIN_NUM_PARAMS": "30",  # stem, stage and near are units of their own
    }.items():
        monkeypatch.setenv(name, value)
    run_in_processes(CHILD, tmp_path)

    def saved(name: str, rank: int) -> dict[str, Tensor]:
        return load_file(tmp_path / f"{name}_{rank}.safetensors")

    for name in (
        "everything",
        "without labels",
        "labels in one process",
        "normed",
        "best",
        "resumed",
    ):
        assert same_state(saved(name, 0), saved(name, 1))
    assert same_state(saved("averaged and watched", 0), saved("averaged", 0))
    assert_same(saved("everything", 0), state(everything(4, directory=tmp_path / "alone")))
    assert_same(saved("without labels", 0), state(without_labels(4)))
    assert_same(saved("best", 0), state(best(4)))
    assert_same(saved("labels in one process", 0), saved("data-parallel", 0))
    assert same_state(saved("resumed", 0), saved("everything", 0))
    checkpoints = [load_file(tmp_path / f"{n}/checkpoint.safetensors") for n in ("run", "alone")]
    assert_same(*checkpoints)

    said = [(tmp_path / f"said_{rank}.txt").read_text() for rank in (0, 1)]
    assert said[1].startswith("Step 3: the task loss `near` is nan")
    assert said[0] == f"Process 1 stopped, and with it all others. {said[1]}"
    stopped = [saved("stopped by NaN", rank) for rank in (0, 1)]
    assert same_state(*stopped)
    assert not same_state(stopped[0], state(make_net(1)))


def plugin(**changes: Any) -> SimpleNamespace:
    usual = {
        "fsdp_version": 2,
        "activation_checkpointing": False,
        "cpu_offload": None,
        "ignored_modules": None,
    }
    return SimpleNamespace(**{**usual, **changes})


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


@needs_fsdp
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plugin": plugin(fsdp_version=1)}, "FSDP 1.*FSDP_VERSION=2"),
        ({"plugin": plugin(activation_checkpointing=True)}, "activation checkpointing"),
        ({"plugin": plugin(ignored_modules=["x"])}, "ignored modules"),
        ({"settings": DistillSettings(mixed_precision="fp16")}, "float16's loss scaling"),
        ({"student": Scaled()}, "scalar parameters, and has `scale`"),
        ({"student": nn.Sequential(make_net(0), nn.Linear(1, 1).double())}, "several types"),
        ({"forward": lambda model, batch: model.stem(batch[0])}, "a method or a part of it"),
    ],
)
def test_what_would_not_train_as_on_one_process_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "student": make_net(1),
        "plugin": plugin(),
        "settings": DistillSettings(),
        "forward": call_batch,
        "example": make_batches(1)[0],
        **changes,
    }
    with pytest.raises(InputError, match=message):
        check_shardable(**arguments)


@needs_fsdp
def test_parameters_offloaded_to_the_cpu_are_refused() -> None:
    offloading = plugin(cpu_offload=fsdp.CPUOffloadPolicy())
    with pytest.raises(InputError, match="offloaded to the CPU"):
        check_shardable(make_net(1), offloading, DistillSettings(), call_batch, make_batches(1)[0])
