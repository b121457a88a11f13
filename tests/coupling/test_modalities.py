"""Groups belong to the modality that makes them, whether by modules or by inputs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from taskprune.calling.modality import FUSION, Modality
from taskprune.coupling import (
    CouplingGroups,
    couple,
    find_modalities,
    labelled,
    mask_points,
    modality_of_groups,
    modality_of_tensors,
    modality_of_work,
)
from taskprune.driving.fusion import build_fusion_net
from taskprune.errors import InputError
from taskprune.graph import trace

BY_INPUTS = (Modality("camera", inputs="images"), Modality("lidar", inputs=("points",)))
BY_MODULES = (Modality("camera", module="camera"), Modality("lidar", module="lidar"))


class Sensors(nn.Module):
    """Two branches, the camera's seen through a view that a matrix turns, and their fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Sigmoid())
        self.view = nn.Linear(5, 4)
        self.lidar = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.fusion = nn.Linear(8, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, images: Tensor, points: Tensor, projection: Tensor) -> Tensor:
        seen = self.view(self.camera(images) @ projection)
        out: Tensor = self.head(self.fusion(torch.cat((seen, self.lidar(points)), 1)).relu())
        return out


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.rand(2, 3, generator=g),
        torch.rand(2, 3, generator=g),
        torch.rand(5, 5, generator=g),
    )


def coupled(net: nn.Module, given: tuple[Tensor, ...] | None = None) -> CouplingGroups:
    return couple(trace(net, given or inputs(), tasks={"task": "output"}))


@pytest.fixture
def groups() -> CouplingGroups:
    return coupled(Sensors())


def test_inputs_that_no_modality_names_count_for_none(groups: CouplingGroups) -> None:
    labels = modality_of_groups(groups, BY_INPUTS)
    assert labels == {
        "camera.0": "camera",
        "view": "camera",
        "lidar.0": "lidar",
        "fusion": FUSION,
    }


def test_a_matrix_may_as_well_be_named(groups: CouplingGroups) -> None:
    camera = Modality("camera", inputs=("images", "projection"))
    assert modality_of_groups(groups, (camera, BY_INPUTS[1])) == modality_of_groups(
        groups, BY_INPUTS
    )


def test_modules_take_what_lies_below_them(groups: CouplingGroups) -> None:
    labels = modality_of_groups(groups, BY_MODULES)
    assert (labels["camera.0"], labels["view"], labels["lidar.0"]) == ("camera", FUSION, "lidar")


def test_modalities_are_found_from_the_inputs(groups: CouplingGroups) -> None:
    found = find_modalities(groups)
    assert [(m.name, m.inputs) for m in found] == [("images", "images"), ("points", "points")]
    assert labelled(groups).modalities == found


def test_parameters_and_operators_have_modalities_too(groups: CouplingGroups) -> None:
    known = labelled(groups, BY_INPUTS)
    tensors = modality_of_tensors(known)
    assert tensors["camera.2.weight"] == tensors["view.bias"] == "camera"
    assert tensors["fusion.weight"] == FUSION
    work = dict(zip((w.module for w in known.macs), modality_of_work(known), strict=True))
    assert (work["camera.2"], work["view"], work["lidar.0"]) == ("camera", "camera", "lidar")
    assert work["fusion"] == work["head"] == FUSION


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.head(self.a(a) + self.b(b))
        return out


def test_channels_that_several_modalities_make_belong_to_the_fusion() -> None:
    groups = coupled(Summed(), (torch.ones(2, 3), torch.ones(2, 3)))
    (label,) = modality_of_groups(
        groups, (Modality("one", inputs="a"), Modality("two", inputs="b"))
    ).values()
    assert label == FUSION


def test_a_module_of_both_sensors_belongs_to_the_fusion() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
            self.own, self.head = nn.Linear(3, 4), nn.Linear(12, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            parts = (self.branch(a), self.branch(b), self.own(b))
            out: Tensor = self.head(torch.cat(parts, 1))
            return out

    groups = coupled(Shared(), (torch.ones(2, 3), torch.ones(2, 3)))
    modalities = (Modality("one", inputs="a"), Modality("two", inputs="b"))
    assert modality_of_groups(groups, modalities)["branch.0"] == FUSION
    # Masking the module would take both sensors away.
    with pytest.raises(InputError, match="not the output of a module of its own"):
        mask_points(labelled(groups, modalities), modalities[0])


def test_features_are_masked_where_a_modality_ends(groups: CouplingGroups) -> None:
    known = labelled(groups, BY_INPUTS)
    assert [mask_points(known, m) for m in BY_INPUTS] == [("view",), ("lidar",)]
    assert [mask_points(labelled(groups, BY_MODULES), m) for m in BY_MODULES] == [
        ("camera",),
        ("lidar",),
    ]


class Activated(Sensors):
    def forward(self, images: Tensor, points: Tensor, projection: Tensor) -> Tensor:
        seen = self.view(self.camera(images) @ projection).sigmoid()
        out: Tensor = self.head(self.fusion(torch.cat((seen, self.lidar(points)), 1)))
        return out


class Parallel(Sensors):
    def forward(self, images: Tensor, points: Tensor, projection: Tensor) -> Tensor:
        self.lidar(points)
        out: Tensor = self.view(self.camera(images) @ projection)
        return out


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Activated, r"`camera` hands to the others at aten.cat.default .* module='path"),
        (Parallel, "Nothing of `camera` .* meets"),
    ],
    ids=["a function comes last", "never meet"],
)
def test_features_that_no_module_returns_are_not_masked(net: type[nn.Module], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mask_points(labelled(coupled(net()), BY_INPUTS), BY_INPUTS[0])


def test_the_bundled_net_has_its_branches_found() -> None:
    net = build_fusion_net("n")
    given = (torch.rand(1, 3, 96, 160), torch.rand(1, 50, 4), torch.rand(1, 3, 4))
    known = labelled(couple(trace(net, given, tasks={"drivable": "drivable"})))
    assert [m.name for m in known.modalities] == ["images", "points"]
    labels = {group.name: group.modality for group in known}
    assert labels["camera_map.conv"] == "images"
    assert [mask_points(known, m) for m in known.modalities] == [("camera_map",), ("lidar_branch",)]
    by_module = (Modality("a", module="camera_branch"), Modality("b", module="lidar_branch"))
    for name, label in modality_of_groups(known, by_module).items():
        if label != FUSION:
            assert labels[name] == {"a": "images", "b": "points"}[label]


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (BY_INPUTS[:1], "at least two"),
        ((BY_INPUTS[0], Modality("camera", inputs="points")), "name of its own"),
        ((BY_INPUTS[0], BY_MODULES[1]), "all by inputs"),
        ((BY_INPUTS[0], Modality("lidar", inputs="cloud")), "images, points, projection"),
        ((BY_INPUTS[0], Modality("lidar", inputs=("points", "images"))), "named by `camera`"),
        ((BY_MODULES[0], Modality("lidar", module="radar")), "no such module"),
        ((BY_MODULES[0], Modality("lidar", module="camera.0")), "lies inside"),
        ((BY_MODULES[0], Modality("lidar", module="camera")), "lies inside"),
    ],
)
def test_modalities_that_the_model_lacks_are_refused(
    groups: CouplingGroups, modalities: Sequence[Modality], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        labelled(groups, modalities)


def test_a_single_input_has_no_modalities() -> None:
    with pytest.raises(InputError, match="at least two"):
        labelled(coupled(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), (torch.ones(2, 3),)))


@pytest.mark.parametrize(
    ("name", "module", "given"),
    [("", "a", ()), ("a", None, ()), ("a", "b", "c"), (FUSION, "a", ())],
)
def test_a_modality_is_declared_in_one_way(
    name: str, module: str | None, given: str | tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match="needs a name"):
        Modality(name, module=module, inputs=given)
