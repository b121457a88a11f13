from __future__ import annotations

import torch
from nets_samples import scenes, tiny_net
from torch import Tensor, nn

from taskprune.driving.batch import DrivingBatch
from taskprune.driving.losses import detection_loss, drivable_loss, lane_loss


def total_loss(net: nn.Module, batch: DrivingBatch) -> Tensor:
    outputs = net(batch.images, batch)
    losses = [loss(outputs, batch) for loss in (detection_loss, drivable_loss, lane_loss)]
    return torch.stack([loss for loss in losses if loss is not None]).sum()


def test_gradients_reach_every_parameter() -> None:
    """From the second step on: box heads start at zero and pass nothing down in the first.

    Batch norms use fixed statistics here; those of the batch take out any bias before them.
    """
    net, batch = tiny_net(), scenes((2, 1))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        total_loss(net, batch).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    missing = [
        name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert missing == []


def test_queries_start_detached_from_the_encoder_in_training() -> None:
    net, batch = tiny_net(), scenes((2, 1))
    detection = net(batch.images)["detection"]
    for output in (detection["boxes"], detection["logits"]):
        (gradient,) = torch.autograd.grad(
            output.sum(), net.detection.enc_output.weight, retain_graph=True, allow_unused=True
        )
        assert gradient is None


def test_the_net_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    net, batch = tiny_net(), scenes((2, 1), size=(64, 64))
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3)
    first = total_loss(net, batch).detach()
    for _ in range(60):
        optimiser.zero_grad()
        loss = total_loss(net, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
    assert loss.detach() < 0.5 * first
    with torch.no_grad():
        outputs = net(batch.images)
    assert batch.drivable is not None
    right = (outputs["drivable"] > 0).float() == batch.drivable
    assert right.float().mean() > 0.95
