"""Recurrent layers, packed sequences, and routing between experts, on tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fuzzing_grammar.parts import Draw, activation, block

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@block("tokens")
class Recurrent(nn.Module):
    """LSTM, GRU and RNN: deep, in both directions, projected, packed, by their last state."""

    lengths: Tensor

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        kind = draw.one(*LAYERS)
        width, self.both = draw.width(), draw.chance(0.4)
        self.how = draw.one("sequence", "packed", "packed", "last state", "time first", "stateful")
        options: dict[str, Any] = {"num_layers": draw.one(1, 1, 2), "bidirectional": self.both}
        if kind == "lstm" and draw.chance(0.3):
            options["proj_size"] = 3
        self.layer = LAYERS[kind](
            shape[2], width, batch_first=self.how != "time first", bias=draw.chance(0.8), **options
        )
        out = options.get("proj_size", width) * (2 if self.both else 1)
        self.out = nn.Linear(out, draw.width())
        lengths = torch.arange(shape[0]).flip(0) % shape[1] + 1
        lengths[0] = shape[1]
        self.register_buffer("lengths", lengths)

    def forward(self, x: Tensor) -> Any:
        if self.how == "packed":
            packed = pack_padded_sequence(
                x, self.lengths[: len(x)], batch_first=True, enforce_sorted=False
            )
            y, _ = pad_packed_sequence(
                self.layer(packed)[0], batch_first=True, total_length=x.shape[1]
            )
            return self.out(y)
        if self.how == "time first":
            return self.out(self.layer(x.transpose(0, 1))[0].transpose(0, 1))
        y, state = self.layer(x)
        if self.how == "last state":
            last = (state[0] if isinstance(state, tuple) else state)[-1]
            last = torch.cat([last, last], -1) if self.both else last
            return self.out(last)[:, None] + self.out(y)
        if self.how == "stateful":
            y, _ = self.layer(x, state)
        return self.out(y)


@block("tokens")
class Cell(nn.Module):
    """A recurrent cell in a loop of the code, or a scan by hand."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.width = draw.width()
        self.how = draw.one("lstm", "gru", "hand", "scan")
        self.embed = nn.Linear(shape[2], self.width)
        self.lstm, self.gru = nn.LSTMCell(shape[2], self.width), nn.GRUCell(shape[2], self.width)
        self.loop, self.decay = (
            nn.Linear(self.width, self.width),
            nn.Parameter(torch.ones(self.width)),
        )

    def forward(self, x: Tensor) -> Any:
        state = x.new_zeros(len(x), self.width)
        if self.how == "scan":
            y, rate, found = self.embed(x), self.decay.sigmoid(), []
            for step in y.unbind(1):
                state = rate * state + step
                found.append(state)
            return torch.stack(found, 1)
        cell, found = state, []
        for step in x.unbind(1):
            if self.how == "lstm":
                state, cell = self.lstm(step, (state, cell))
            elif self.how == "gru":
                state = self.gru(step, state)
            else:
                state = torch.tanh(self.embed(step) + self.loop(state))
            found.append(state)
        return torch.stack(found, dim=1)


@block("tokens")
class Experts(nn.Module):
    """Feedforward layers between which tokens are routed: softly, hardly, by batched weights."""

    def __init__(self, shape: torch.Size, draw: Draw) -> None:
        super().__init__()
        self.how = draw.one("soft", "top", "stacked", "batched", "shared")
        self.n, inner = draw.number(2, 3), draw.width()
        self.route = nn.Linear(shape[2], self.n)
        self.experts = nn.ModuleList(
            nn.Sequential(
                nn.Linear(shape[2], inner), activation(draw, 1), nn.Linear(inner, shape[2])
            )
            for _ in range(self.n)
        )
        self.up = nn.Parameter(torch.ones(self.n, shape[2], inner))
        self.down = nn.Parameter(torch.ones(self.n, inner, shape[2]))
        self.common = nn.Linear(shape[2], shape[2])

    def forward(self, x: Tensor) -> Any:
        gate = self.route(x).softmax(-1)
        if self.how == "top":
            return self.routed(x, gate)
        if self.how == "batched":
            hidden = F.silu(torch.einsum("blc,nci->blni", x, self.up))
            return torch.einsum("blni,nic,bln->blc", hidden, self.down, gate)
        if self.how == "stacked":
            flat = x.reshape(1, -1, x.shape[2]).expand(self.n, -1, -1)
            y = torch.bmm(torch.bmm(flat, self.up).relu(), self.down).view(self.n, *x.shape)
            return (y * gate.permute(2, 0, 1)[..., None]).sum(0)
        every = torch.stack([expert(x) for expert in self.experts], 2)
        y = (every * gate[..., None]).sum(2)
        return y + self.common(x) if self.how == "shared" else y

    def routed(self, x: Tensor, gate: Tensor) -> Any:
        flat = x.flatten(0, 1)
        weights, chosen = gate.flatten(0, 1).topk(1, dim=-1)
        y = torch.zeros_like(flat)
        for n, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == n)
            if rows.numel():
                y.index_add_(0, rows, expert(flat[rows]) * weights[rows, place, None])
        return y.view_as(x)
