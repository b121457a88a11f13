"""Exported files compute what the model does, for any number of samples, or are not written."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import taskprune
from taskprune.deployment import file_formats
from taskprune.deployment.file_formats import KINDS
from taskprune.errors import ExportError, InputError, MissingDependencyError


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.depth = nn.Conv2d(16, 1, 1)
        self.label = nn.Linear(16, 4)

    def forward(self, images: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        features = self.trunk(images)
        if scale is not None:
            features = features * scale[:, None, None, None]
        label = self.label(features.mean((2, 3)))
        return {"depth": self.depth(features), "label": [label, label.argmax(-1)]}


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class FixedBatch(OneLayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(2, 3)  # type: ignore[no-any-return]


class Branching(OneLayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.sum() > 0 else -x)  # type: ignore[no-any-return]


class WithoutOnnx(OneLayer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(self.layer(x)[:, :, None])  # type: ignore[no-any-return]


class Noisy(OneLayer):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + torch.rand_like(x))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def smaller() -> nn.Module:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8)
    pruned = taskprune.prune(
        TwoTasks(), ratio=0.3, example_inputs=images, importance="magnitude"
    ).model
    assert isinstance(pruned.trunk, nn.Sequential)
    pruned.trunk[1].eval()  # as in training with frozen statistics
    return pruned


def all_of(model: nn.Module) -> dict[str, Any]:
    flags = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    tensors = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return {"flags": flags, "hooks": hooks, "grads": grads, "tensors": tensors}


def same(found: Any, expected: Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-5)


def test_onnx_computes_what_the_model_does_and_the_model_stays(
    smaller: nn.Module, tmp_path: Path
) -> None:
    example = {"scale": torch.rand(1), "images": torch.rand(1, 3, 8, 8)}
    given = copy.deepcopy(example)
    before, rng = all_of(smaller), torch.get_rng_state()
    done = taskprune.export(smaller, tmp_path / "new" / "net.onnx", example)

    assert all_of(smaller) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(example[name], given[name]) for name in given)

    images, scale = torch.rand(5, 3, 8, 8), torch.rand(5)
    with torch.no_grad():
        expected = smaller.eval()(images, scale)
    session = onnxruntime.InferenceSession(done.path)
    names = ["depth", "label.0", "label.1"]
    found = session.run(names, {"images": images.numpy(), "scale": scale.numpy()})
    same(found[0], expected["depth"])
    same(found[1], expected["label"][0])
    same(found[2], expected["label"][1])
    by_name = KINDS[".onnx"].model(done.path, expected)(images=images, scale=scale)
    same(by_name["depth"], expected["depth"])  # given in another order than the file has them

    assert [error.path for error in done.outputs] == names
    assert done.inputs == {"scale": ("batch",), "images": ("batch", 3, 8, 8)}
    assert done.batch_sizes == (1, 2)
    assert done.n_bytes == done.path.stat().st_size
    assert done.opset == onnx.load(done.path).opset_import[0].version
    assert done.max_relative_error <= done.tolerance
    assert f"opset {done.opset}" in str(done)
    assert __file__.encode() not in done.path.read_bytes()


def test_an_exported_program_computes_what_the_model_does(
    smaller: nn.Module, tmp_path: Path
) -> None:
    batch = (torch.rand(3, 3, 8, 8), "labels")
    done = taskprune.export(
        smaller,
        tmp_path / "net.pt2",
        batch,
        forward=lambda model, batch: model(batch[0]),
        timed=True,
    )
    images = torch.rand(7, 3, 8, 8)
    with torch.no_grad():
        expected = smaller.eval()(images)
        found = torch.export.load(done.path).module()(images)
    same(found["depth"], expected["depth"])
    assert done.batch_sizes == (1, 3, 4)
    assert done.latency.keys() == {"PyTorch", "torch.export"}
    assert torch.export.load(done.path).example_inputs is None, "data of the user's"
    assert (done.opset, done.inputs) == (None, {"images": ("batch", 3, 8, 8)})


@pytest.mark.filterwarnings("ignore")  # those of libraries that are not ours
@pytest.mark.parametrize("suffix", [".xml", ".pte", ".tflite"])
def test_files_of_other_runtimes_compute_what_the_model_does(
    suffix: str, smaller: nn.Module, tmp_path: Path
) -> None:
    kind = KINDS[suffix]
    for package in kind.packages:
        pytest.importorskip(package)
    example = {"scale": torch.rand(3), "images": torch.rand(3, 3, 8, 8)}
    path = tmp_path / f"net{suffix}"
    done = taskprune.export(smaller, path, example, timed=True)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"net{kind.beside or suffix}"}
    assert done.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert done.latency.keys() == {"PyTorch", kind.runtime}
    n: int | str = "batch" if kind.any_batch else 3
    assert done.inputs == {"scale": (n,), "images": (n, 3, 8, 8)}

    n_samples = 5 if kind.any_batch else 3
    images, scale = torch.rand(n_samples, 3, 8, 8), torch.rand(n_samples)
    with torch.no_grad():
        expected = smaller.eval()(images, scale)
        found = kind.model(path, expected)(scale=scale, images=images)
    same(found["depth"], expected["depth"])
    same(found["label"][0], expected["label"][0])
    same(found["label"][1], expected["label"][1])


def test_files_whose_memory_is_laid_out_ahead_take_no_other_number_of_samples(
    tmp_path: Path,
) -> None:
    for suffix in (".pte", ".tflite"):
        with pytest.raises(InputError, match="memory for one number of samples"):
            taskprune.export(
                OneLayer(), tmp_path / f"net{suffix}", torch.rand(2, 4), dynamic_batch=True
            )


def test_quantised_files_say_what_that_changed(smaller: nn.Module, tmp_path: Path) -> None:
    batches = [(torch.rand(4, 3, 8, 8), torch.zeros(4)) for _ in range(3)]
    path = tmp_path / "net.onnx"
    done = taskprune.export(smaller, path, batches[0][0], quantize=batches)
    assert done.quantization is not None
    assert done.quantization.batches == 3
    assert done.max_relative_error < 1e-5 < done.quantization.max_relative_error < 0.2
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert "8-bit" in str(done)
    assert done.summary()["quantization"]["batches"] == 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (FixedBatch, "any number of samples.*dynamic_batch=False"),
        (Branching, r"captured: .*branches on the value.*test_export\.py:\d+"),
        (WithoutOnnx, r"`aten\._linalg_svd`.*\.pt2"),
    ],
)
def test_what_cannot_be_exported_is_named_and_no_file_changes(
    kind: type[nn.Module], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("what was there before")
    with pytest.raises(ExportError, match=message):
        taskprune.export(kind(), path, torch.rand(2, 4))
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not compute what `Noisy` does"):
        taskprune.export(Noisy(), tmp_path / "net.pt2", torch.rand(2, 4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [(".onnx", "onnxscript", "onnx"), (".xml", "openvino", "openvino")],
)
def test_missing_packages_are_named(
    suffix: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        file_formats, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(MissingDependencyError, match=rf'{package}.*"taskprune\[{extra}\]"'):
        taskprune.export(OneLayer(), tmp_path / f"net{suffix}", torch.rand(2, 4))


@pytest.mark.parametrize(
    ("name", "example", "options", "message"),
    [
        ("net.pb", torch.rand(2, 4), {}, r"\.onnx.*\.pt2"),
        ("net.pt2", torch.rand(2, 4), {"quantize": [torch.rand(2, 4)]}, "Only ONNX"),
        ("net.pt2", torch.rand(2, 5), {}, "rejects the example"),
        ("net.pt2", torch.rand(2, 4), {"forward": lambda m, x: m.layer(x)}, "calls the model"),
        ("net.pt2", torch.rand(2, 4), {"tolerance": 0.0}, "tolerance"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    name: str, example: Tensor, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        taskprune.export(OneLayer(), tmp_path / name, example, **options)
