"""Teach taskprune an operator of your own: without a rule it is frozen, with one it prunes.

Run it with ``python examples/custom_operator.py``. The operator here gates every channel by the
mean of its own map, so channels come out as they go in.
"""

import torch
from torch import Tensor, nn

import taskprune
from taskprune.errors import UnsupportedOperatorError
from taskprune.testing import assert_rule_is_exact


@torch.library.custom_op("mylib::self_gate", mutates_args=())
def self_gate(x: Tensor, strength: float) -> Tensor:
    """Scale every channel of a map ``[batch, channels, height, width]`` by its own mean."""
    return x * torch.sigmoid(strength * x.mean((2, 3), keepdim=True))


@self_gate.register_fake
def _(x: Tensor, strength: float) -> Tensor:  # noqa: ARG001 - the operator's signature
    return torch.empty_like(x)


class Net(nn.Module):
    """A small classifier that calls the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self_gate(self.stem(x), 2.0).mean((2, 3)))
        return logits


def main() -> None:
    """Couple without the rule, register it, check it, prune with it."""
    torch.manual_seed(0)
    model, images = Net().eval(), torch.rand(2, 3, 16, 16)
    graph = taskprune.trace(model, images)

    print("Without a rule, what the operator touches stays, and the report says so:")
    for group in taskprune.couple(graph).frozen:
        for reason in group.reasons:
            if reason.kind == "unknown":
                print(f"  {group.name}: {reason.detail}")
    try:
        taskprune.couple(graph, strict=True)
    except UnsupportedOperatorError as error:
        print(f"strict=True: {error}\n")

    @taskprune.channel_rule(torch.ops.mylib.self_gate.default)
    def _self_gate(ctx: taskprune.RuleContext) -> None:
        # Channel by channel, and zero where the input is zero.
        ctx.produce(ctx.axes("x"), zero=True)

    print(assert_rule_is_exact(lambda x: self_gate(x, 2.0), [(2, 8, 5, 5)], [(3, 6, 4, 7)]))
    result = taskprune.prune(model, None, 0.5, example_inputs=images, importance="magnitude")
    print(f"\nWith a rule it prunes:\n{result.model}")


if __name__ == "__main__":
    main()
