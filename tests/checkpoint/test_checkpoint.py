"""A checkpoint gives back the same model in another process, or says what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from taskprune.errors import CheckpointError, InputError
from taskprune.plan.composition import compose
from taskprune.plan.plan import PruningPlan, build_plan
from taskprune.rewrite import apply_plan
from taskprune.rewrite.checkpoint import load_checkpoint, read_header, save_checkpoint
from taskprune.testing import random_drop, randomise_

sys.path.insert(0, str(Path(__file__).parents[1] / "rewrite"))
import small_nets
from small_nets import ZOO, ConvNet, HandMade, TiedNet, conv_net

NETS = Path(small_nets.__file__).parent


def pruned(made: HandMade, ratio: float = 0.4) -> tuple[nn.Module, PruningPlan]:
    plan = build_plan(made.groups, random_drop(made.groups, ratio, seed=2), {"params": (9, 5)})
    return apply_plan(made.model, plan).eval(), plan


def saved(tmp_path: Path) -> Path:
    model, plan = pruned(conv_net())
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, model, plan)
    return path


@pytest.mark.parametrize("case", ["conv", "block", "tied"])
def test_state_plan_and_metadata_come_back(case: str, tmp_path: Path) -> None:
    made = ZOO[case]()
    model, plan = pruned(made)
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, model, plan, metadata={"epoch": 3, "scores": [0.5, 1]})
    loaded = load_checkpoint(path, type(made.model)).eval()
    assert str(loaded) == str(model)
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    header = read_header(path)
    assert header.plan == plan
    assert header.metadata == {"epoch": 3, "scores": [0.5, 1]}
    assert header.model_class.endswith(type(made.model).__name__)


def test_outputs_are_equal_to_the_bit_in_a_new_process(tmp_path: Path) -> None:
    made = conv_net()
    model, plan = pruned(made)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(tmp_path / "net.safetensors", model, plan)
    script = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(NETS)!r})\n"
        "from small_nets import ConvNet, conv_net\n"
        "from taskprune.rewrite.checkpoint import load_checkpoint\n"
        f"model = load_checkpoint({str(tmp_path / 'net.safetensors')!r}, ConvNet).eval()\n"
        f"torch.save(model(conv_net().inputs).detach(), {str(tmp_path / 'out.pt')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(NETS.parents[1])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(made.inputs).detach())


def test_given_model_stays_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path)
    fresh = randomise_(ConvNet(), seed=11)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    loaded = load_checkpoint(path, fresh)
    assert loaded is not fresh
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model, plan = pruned(ZOO["tied"]())
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, model, plan)
    assert "output.weight" not in load_file(path)
    loaded = load_checkpoint(path, TiedNet)
    assert loaded.get_parameter("output.weight") is loaded.get_parameter("embedding.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtype_and_memory_format_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model, plan = pruned(conv_net())
    model = model.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_checkpoint(tmp_path / "a", model, plan)
    loaded = load_checkpoint(tmp_path / "a", ConvNet)
    weight = loaded.get_parameter("conv2.weight")
    assert weight.dtype is dtype
    assert weight.stride() == model.get_parameter("conv2.weight").stride()


def test_a_model_pruned_twice_is_one_checkpoint(tmp_path: Path) -> None:
    made = conv_net()
    first = build_plan(made.groups, {"conv1": np.array([1, 4]), "conv2": np.array([0])})
    once = apply_plan(made.model, first)
    smaller = small_nets.conv_groups(4, 3)
    second = build_plan(smaller, {"conv1": np.array([0]), "conv2": np.array([2])})
    twice = apply_plan(once, second).eval()
    both = compose(first, second)
    at_once = apply_plan(made.model, both).eval()
    assert torch.equal(at_once(made.inputs), twice(made.inputs))
    save_checkpoint(tmp_path / "net.safetensors", twice, both)
    loaded = load_checkpoint(tmp_path / "net.safetensors", ConvNet).eval()
    assert torch.equal(loaded(made.inputs), twice(made.inputs))


def test_trained_further_is_fine(tmp_path: Path) -> None:
    made = conv_net()
    model, plan = pruned(made)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    model(made.inputs).square().sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "net.safetensors", model, plan)
    loaded = load_checkpoint(tmp_path / "net.safetensors", ConvNet).eval()
    assert torch.equal(loaded(made.inputs), model.eval()(made.inputs))


def test_model_of_another_plan_is_refused(tmp_path: Path) -> None:
    made = conv_net()
    _, plan = pruned(made)
    with pytest.raises(CheckpointError, match=r"the model that this plan makes.*compose"):
        save_checkpoint(tmp_path / "a", made.model, plan)
    assert list(tmp_path.iterdir()) == []


def test_another_original_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"pruned small_nets\.ConvNet.*TiedNet"):
        load_checkpoint(path, TiedNet)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_files_cut_short_are_named(length: int, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"net\.safetensors` is damaged, cut short"):
        load_checkpoint(path, ConvNet)


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path, ConvNet)


def test_changed_plans_are_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    for old, new in (
        (b'\\"size\\": 6', b'\\"sizo\\": 6'),
        (b'\\"keep\\": \\"0', b'\\"keep\\": \\"1'),
    ):
        assert old in data
        path.write_bytes(data.replace(old, new))
        with pytest.raises(CheckpointError, match=r"net\.safetensors"):
            load_checkpoint(path, ConvNet)


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "none", ConvNet)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="foreign` is a safetensors file, but none"):
        read_header(tmp_path / "foreign")
    (tmp_path / "text").write_text(json.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="text` is damaged"):
        read_header(tmp_path / "text")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    model, plan = pruned(conv_net())

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, model, plan)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_no_files(tmp_path: Path) -> None:
    model, plan = pruned(conv_net())
    with pytest.raises(CheckpointError, match="is a folder"):
        save_checkpoint(tmp_path, model, plan)
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path / "none" / "a", model, plan)


def test_metadata_must_be_plain(tmp_path: Path) -> None:
    model, plan = pruned(conv_net())
    with pytest.raises(InputError, match="metadata"):
        save_checkpoint(tmp_path / "a", model, plan, metadata={"net": model})


def test_extra_state_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 1}

    model = Extra(2, 2)
    shapes = {"weight": (2, 2), "bias": (2,)}
    with pytest.raises(CheckpointError, match="get_extra_state"):
        save_checkpoint(tmp_path / "a", model, PruningPlan((), (), (), (), shapes))


def test_loaded_tensors_start_at_whole_vectors(tmp_path: Path) -> None:
    # Kernels round differently on memory that does not: outputs would be equal only nearly.
    loaded = load_checkpoint(saved(tmp_path), conv_net().model)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.state_dict().values())
