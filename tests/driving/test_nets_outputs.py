from __future__ import annotations

import pytest
import torch
from nets_samples import TINY, scenes, tiny_net

from taskprune.driving.nets import FEATURE_MODULES, build_net
from taskprune.driving.nets.config import SCALES
from taskprune.errors import InputError


def test_eval_outputs_are_four_tensors_at_input_resolution() -> None:
    outputs = tiny_net(num_classes=3).eval()(torch.rand(2, 3, 64, 96))
    assert list(outputs) == ["detection", "drivable", "lane"]
    assert {k: tuple(v.shape) for k, v in outputs["detection"].items()} == {
        "boxes": (2, TINY.queries, 4),
        "logits": (2, TINY.queries, 3),
    }
    assert outputs["drivable"].shape == outputs["lane"].shape == (2, 64, 96)


def test_train_outputs_hold_every_supervised_layer() -> None:
    batch = scenes((2, 0, 1))
    detection = tiny_net()(batch.images, batch)["detection"]
    assert set(detection) == {"boxes", "logits", "auxiliary", "encoder", "denoising"}
    assert len(detection["auxiliary"]) == TINY.decoder_layers - 1
    for layer in (detection, detection["encoder"], *detection["auxiliary"]):
        assert layer["boxes"].shape == (3, TINY.queries, 4)
        assert layer["logits"].shape == (3, TINY.queries, 1)
    copies = TINY.denoising // 2  # the fullest image has two boxes
    noised = detection["denoising"]
    assert len(noised["layers"]) == TINY.decoder_layers
    assert noised["layers"][0]["boxes"].shape == (3, 2 * copies * 2, 4)
    assert len(noised["target_index"]) == copies * 3


@pytest.mark.parametrize("targets", [None, scenes((0, 0))], ids=["no_targets", "no_boxes"])
def test_without_boxes_there_is_no_denoising(targets: object) -> None:
    outputs = tiny_net()(torch.rand(2, 3, 64, 96), targets)
    assert "denoising" not in outputs["detection"]


def test_feature_modules_return_one_map_a_stride() -> None:
    net, strides = tiny_net().eval(), []
    for name in FEATURE_MODULES:
        net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: strides.append(64 // output.shape[2])
        )
    net(torch.rand(1, 3, 64, 64))
    assert strides == [8, 16, 32, 8, 16, 32]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_runs_in_both_modes(scale: str) -> None:
    with torch.device("meta"):
        net, images = build_net(scale), torch.empty(2, 3, 192, 320)
        for training in (True, False):
            outputs = net.train(training)(images)
            assert outputs["lane"].shape == (2, 192, 320)
            assert outputs["detection"]["boxes"].shape == (2, SCALES[scale].queries, 4)


def test_targets_and_random_state_play_no_part_in_eval() -> None:
    net, batch = tiny_net().eval(), scenes()
    state = torch.get_rng_state()
    with_targets = net(batch.images, batch)
    assert torch.equal(torch.get_rng_state(), state)
    without = net(batch.images)
    assert torch.equal(with_targets["detection"]["boxes"], without["detection"]["boxes"])
    assert torch.equal(with_targets["lane"], without["lane"])


def test_denoising_does_not_leak_into_ordinary_queries() -> None:
    net, batch = tiny_net(), scenes((2, 1, 1))
    alone = net(batch.images)["detection"]
    noised = net(batch.images, batch)["detection"]
    torch.testing.assert_close(noised["boxes"], alone["boxes"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noised["logits"], alone["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", ["boxes", "logits", "drivable", "lane"])
def test_eval_outputs_are_differentiable_in_the_image(output: str) -> None:
    net = tiny_net().eval()
    with torch.no_grad():  # box heads start at zero and would hide the path
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    outputs = net(images)
    value = outputs[output] if output in outputs else outputs["detection"][output]
    (gradient,) = torch.autograd.grad(value.square().sum(), images)
    assert gradient.abs().sum() > 0


def test_a_single_image_trains() -> None:
    batch = scenes((1,))
    outputs = tiny_net()(batch.images, batch)
    assert torch.isfinite(outputs["lane"]).all()


def test_an_image_with_fewer_cells_than_queries_gives_a_query_a_cell() -> None:
    net = build_net("n").eval()
    assert net(torch.rand(1, 3, 32, 32))["detection"]["boxes"].shape == (1, 16 + 4 + 1, 4)


def test_boxes_stay_exact_under_autocast() -> None:
    net, batch = tiny_net(), scenes()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = net(batch.images, batch)
    assert outputs["detection"]["boxes"].dtype == torch.float32


def test_double_precision_stays_double() -> None:
    outputs = tiny_net().double().eval()(torch.rand(1, 3, 64, 64, dtype=torch.float64))
    assert outputs["detection"]["boxes"].dtype == outputs["lane"].dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (3, 64, 64)], ids=["height", "unbatched"])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        tiny_net()(torch.rand(shape))


@pytest.mark.parametrize(("scale", "num_classes"), [("xl", 1), ("n", 0)])
def test_unknown_scales_and_no_classes_are_refused(scale: str, num_classes: int) -> None:
    with pytest.raises(InputError, match="Found"):
        build_net(scale, num_classes=num_classes)
