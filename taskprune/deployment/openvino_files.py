"""Files of OpenVINO: the operators as XML, and the weights beside them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskprune.deployment.file_models import FileModel
from taskprune.deployment.named_programs import NamedProgram


def write_openvino(
    program: torch.export.ExportedProgram, path: Path, *, outputs: Sequence[str] | None
) -> None:
    """Translate a program, in the precision that it has.

    Args:
        program: From ``torch.export``.
        path: The file of operators to write. That of the weights is called the same, with ``.bin``.
        outputs: What to call the outputs; ``None`` numbers them.
    """
    library = import_module("openvino")
    named = NamedProgram(program, outputs)
    # What `convert_model` does, which would report it to a server of the vendor's.
    frontend = import_module("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    kind = import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    decoder = kind.from_exported_program(named.captured())  # has to live as long as what reads it
    converted = frontend.convert(frontend.load(decoder))
    converted.reshape(
        {
            port: [size if isinstance(size, int) else -1 for size in shape]
            for port, shape in zip(converted.inputs, named.shapes.values(), strict=True)
        }
    )
    for port, name in zip(converted.inputs, named.shapes, strict=True):
        port.get_tensor().set_names({name})
    for number, port in enumerate(converted.outputs):
        port.get_tensor().set_names({outputs[number] if outputs else f"output_{number}"})
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".openvino.") as folder:
        written = Path(folder) / "model.xml"  # it chooses the second name by the first
        library.save_model(converted, written, compress_to_fp16=False)
        written.replace(path)
        written.with_suffix(".bin").replace(path.with_suffix(".bin"))


class OpenVINOModel(FileModel):
    """A file of OpenVINO.

    Args:
        path: The operators; the weights lie beside.
        like: Outputs of the model, whose structure those of the file are given.
    """

    def __init__(self, path: Path, like: Any) -> None:
        super().__init__(like)
        core = import_module("openvino").Core()
        network = core.read_model(path, path.with_suffix(".bin"))
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = core.compile_model(network, "CPU", settings)
        self.check_returned(len(self._compiled.outputs))

    @property
    def names(self) -> Sequence[str]:
        return [port.get_any_name() for port in self._compiled.inputs]

    def run(self, tensors: dict[str, Tensor]) -> Sequence[Tensor]:
        found = self._compiled([tensor.numpy() for tensor in tensors.values()])
        return [torch.from_numpy(found[port].copy()) for port in self._compiled.outputs]
