"""Modalities: the sensors behind a model's inputs, declared like tasks."""

from __future__ import annotations

from dataclasses import dataclass

from taskprune.errors import InputError, short

FUSION = "fusion"
"""Label of what belongs to no modality: what is computed from several of them, and heads."""


@dataclass(frozen=True)
class Modality:
    """One sensor's branch of a network, declared by the module or by the inputs.

    ``Modality("camera", module="camera_branch")`` or ``Modality("camera", inputs="images")``.

    Attributes:
        name: For example ``"camera"``.
        module: Path of the branch; everything below it belongs to the modality, and its output is
            what the rest of the network gets of it.
        inputs: Arguments of the model's ``forward``: all that is computed from them, and from no
            input of another modality, belongs to the modality. Nested ones by their paths, as in
            ``"batch.points"``; a prefix takes everything below it. Inputs that no modality names,
            such as a projection matrix, count for none. A single string is one name.
    """

    name: str
    module: str | None = None
    inputs: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or self.name == FUSION or bool(self.module) == bool(self.inputs):
            raise InputError(
                "A modality needs a name (not 'fusion') and either the path of its branch, "
                "Modality('camera', module='camera_branch'), or the arguments of the model's "
                "`forward` that carry it, Modality('camera', inputs='images'). Found "
                f"{short(self.name)}, module={short(self.module)}, inputs={short(self.inputs)}."
            )

    @property
    def input_paths(self) -> tuple[str, ...]:
        """The inputs, as a tuple in any case."""
        return (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
