from __future__ import annotations

import pytest
import torch
from distill_toys import TwoTaskNet, make_net
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taskprune.calling.task import Task
from taskprune.distillation import Tap, default_taps
from taskprune.errors import InputError
from taskprune.testing import unchanged

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def no_labels(outputs: object, batch: object) -> None:
    return None


def owner(*paths: str) -> Task:
    return Task(no_labels, outputs=paths)


def test_default_taps_are_the_last_shared_output_of_each_resolution() -> None:
    assert default_taps(make_net(0), IMAGES) == (Tap("stem"), Tap("stage"))


def test_default_taps_leave_the_model_as_it_was() -> None:
    net = make_net(0, norm=True, dropout=0.5)
    net.requires_grad_(False)
    net.stage[1].eval()
    with torch.no_grad(), unchanged(net):
        taps = default_taps(net, IMAGES)
    assert taps == (Tap("stem"), Tap("stage"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_default_taps_look_through_checkpoints_of_both_kinds() -> None:
    class Checkpointed(TwoTaskNet):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = checkpoint(self.stage, self.stem(images), use_reentrant=True)
            return {"near": self.near(features), "far": self.far(features)}

    assert default_taps(Checkpointed(), IMAGES) == (Tap("stem"), Tap("stage"))


def test_default_taps_name_the_last_call_of_a_shared_module() -> None:
    class Twice(TwoTaskNet):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            x = self.stem(images)
            features = self.stage(x) + self.stage(x.flip(-1))
            return {"near": self.near(features), "far": self.far(features)}

    assert default_taps(Twice(), IMAGES) == (Tap("stem"), Tap("stage", call=1))


def test_default_taps_take_tokens_where_there_are_no_maps() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert default_taps(net, torch.randn(2, 7, 5)) == (Tap("1"),)


def test_outputs_that_share_nothing_have_no_default_taps() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))
            self.two = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.two(x)

    with pytest.raises(InputError, match="automatic choice of taps"):
        default_taps(Apart(), IMAGES)


class WithSideOutput(TwoTaskNet):
    """Also returns something that only the stem leads to, and boxes beside one task's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(4, 1, 1)
        self.boxes = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> dict[str, object]:  # type: ignore[override]
        x = self.stem(images)
        features = self.stage(x)
        near = {"logits": self.near(features), "boxes": self.boxes(x)}
        return {"near": near, "far": self.far(features), "side": self.side(x)}


def test_what_all_tasks_share_is_told_from_the_outputs_they_declare() -> None:
    net = WithSideOutput()
    assert default_taps(net, IMAGES) == (Tap("stem"),)
    tasks = {"near": owner("near"), "far": owner("far")}
    assert default_taps(net, IMAGES, tasks=tasks) == (Tap("stem"), Tap("stage"))
    # A task that says nothing may own any output that nobody declares.
    unsaid = {"near": owner("near"), "far": Task(no_labels)}
    assert default_taps(net, IMAGES, tasks=unsaid) == (Tap("stem"),)


def test_declared_outputs_that_the_teacher_lacks_are_passed_over() -> None:
    tasks = {"near": owner("near"), "new": owner("not there")}
    assert default_taps(make_net(0), IMAGES, tasks=tasks)[-1] == Tap("near.1")
    tasks = {"new": owner("not there")}
    assert default_taps(make_net(0), IMAGES, tasks=tasks) == (Tap("stem"), Tap("stage"))


class Attention(nn.Module):
    """Scores go through a module of their own, as where dropout or a norm is applied to them."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.key_norm = nn.LayerNorm(width // heads)
        self.weights = nn.Softmax(dim=-1)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = self.weights(q @ self.key_norm(k).mT) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


class Mixed(nn.Module):
    """A convolutional stem whose map becomes tokens, with a class token on request."""

    def __init__(self, *, class_token: bool = False, back_to_map: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.patches = nn.Conv2d(4, 8, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 8)) if class_token else None
        self.attention = Attention(8)
        self.norm = nn.LayerNorm(8)
        self.merge = nn.Conv2d(8, 8, 1) if back_to_map else None
        self.one, self.two = nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(self.stem(images)).flatten(2).mT
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.norm(x + self.attention(x))
        if self.merge is not None:
            x = self.merge(x.mT.unflatten(2, (2, 2))).flatten(2).mT
        return self.one(x), self.two(x[:, :1])


def test_tokens_after_maps_are_taken_and_what_runs_inside_attention_is_not() -> None:
    assert default_taps(Mixed(), IMAGES) == (Tap("stem"), Tap("norm"))


def test_a_class_token_makes_another_resolution() -> None:
    taps = default_taps(Mixed(class_token=True), IMAGES)
    assert taps == (Tap("stem"), Tap("patches"), Tap("norm"))


def test_tokens_that_become_a_map_again_share_its_resolution() -> None:
    assert default_taps(Mixed(back_to_map=True), IMAGES) == (Tap("stem"), Tap("merge"))


def test_maps_with_channels_last_have_the_resolution_of_their_positions() -> None:
    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(width)
            self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.narrow(self.wide(self.norm(x)).relu())  # type: ignore[no-any-return]

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first = nn.Linear(3, 4), Block(4)
            self.merge, self.second = nn.Linear(4, 8), Block(8)
            self.head = nn.Linear(8, 2)

        def forward(self, images: Tensor) -> Tensor:
            x = self.first(self.embed(images.permute(0, 2, 3, 1)))
            x = self.second(self.merge(x[:, ::2, ::2]))
            return self.head(x.mean((1, 2)))  # type: ignore[no-any-return]

    expected = (Tap("first", channel_dim=3), Tap("second", channel_dim=3))
    assert default_taps(ChannelsLast(), IMAGES) == expected


def test_windows_stacked_on_the_batch_are_passed_over() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            self.window = nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            x = self.stem(images)  # [2, 4, 8, 8], as 8 windows of 16 tokens
            windows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(8, 16, 4)
            windows = self.window(windows).view(2, 2, 2, 4, 4, 4).permute(0, 5, 1, 3, 2, 4)
            return self.head(windows.reshape(2, 4, 8, 8))  # type: ignore[no-any-return]

    assert default_taps(Windows(), IMAGES) == (Tap("stem"),)
