"""Multi-head attention whose heads and head widths can go.

``torch.nn.MultiheadAttention`` packs the projections of queries, keys and values into one weight
and insists that heads times head width is the width of its input and output. Here the projections
are layers of their own, with a width of their own in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskprune.replace.parts import part_of


class PrunableMultiheadAttention(nn.Module):
    """The function of ``torch.nn.MultiheadAttention`` with an inner width of its own.

    Made by :meth:`from_torch`; called like the original and equal to it up to rounding, also with
    dropout from one seed. Nested tensors are not taken.

    Attributes:
        num_heads: Number of heads.
        scale: What scores are multiplied by. It is that of the original's head width and stays,
            so that a head which loses channels goes on computing the same function of the others.
        dropout: Probability of a weight to be dropped in training.
        batch_first: Whether inputs are ``[batch, length, width]``; else ``[length, batch, width]``.
        bias_k, bias_v: A key and a value behind those of every sequence (``add_bias_kv``), or
            ``None``. Shape ``[1, 1, inner width]``.
        add_zero_attn: Whether a key and a value of zeros come behind them.
    """

    in_proj_weight: None = None
    in_proj_bias: None = None
    _qkv_same_embed_dim = False
    """The encoder layers of torch read these to see whether their fused inference path may run,
    which takes packed projections only: by these values it may not."""

    def __init__(  # noqa: PLR0913 - the options of the original
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        out_proj: nn.Linear,
        *,
        num_heads: int,
        scale: float,
        dropout: float = 0.0,
        batch_first: bool = False,
        bias_k: nn.Parameter | None = None,
        bias_v: nn.Parameter | None = None,
        add_zero_attn: bool = False,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.out_proj = out_proj
        self.num_heads = num_heads
        self.scale = scale
        self.dropout = dropout
        self.batch_first = batch_first
        self.bias_k, self.bias_v = bias_k, bias_v
        self.add_zero_attn = add_zero_attn

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> PrunableMultiheadAttention:
        """Return an equal module, whose weights lie in the memory of the original's.

        Training flag, dtype, device, ``requires_grad`` and gradients are kept.
        """
        packed = module.in_proj_weight
        width = module.embed_dim
        thirds = [slice(i * width, (i + 1) * width) for i in range(3)]
        weights = (
            [part_of(w) for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
            if packed is None
            else [part_of(packed, third) for third in thirds]
        )
        bias, out_bias = module.in_proj_bias, module.out_proj.bias
        q_proj, k_proj, v_proj = (
            _linear(weight, None if bias is None else part_of(bias, third))
            for weight, third in zip(weights, thirds, strict=True)
        )
        replacement = cls(
            q_proj,
            k_proj,
            v_proj,
            _linear(
                part_of(module.out_proj.weight), None if out_bias is None else part_of(out_bias)
            ),
            num_heads=module.num_heads,
            scale=(width // module.num_heads) ** -0.5,
            dropout=module.dropout,
            batch_first=module.batch_first,
            bias_k=None if module.bias_k is None else part_of(module.bias_k),
            bias_v=None if module.bias_v is None else part_of(module.bias_v),
            add_zero_attn=module.add_zero_attn,
        )
        return replacement.train(module.training)

    @staticmethod
    def parts_of(name: str, width: int) -> list[tuple[str, slice]]:
        """Return which parameters one of the original's becomes, and which of its rows each has.

        Args:
            name: Of a parameter of ``torch.nn.MultiheadAttention``.
            width: Its ``embed_dim``.
        """
        if name.startswith("in_proj_"):
            kind = name.removeprefix("in_proj_")
            return [
                (f"{letter}_proj.{kind}", slice(i * width, (i + 1) * width))
                for i, letter in enumerate("qkv")
            ]
        return [(name.replace("_proj_weight", "_proj.weight"), slice(None))]

    @property
    def embed_dim(self) -> int:
        """Width of the queries."""
        return self.q_proj.in_features

    @property
    def kdim(self) -> int:
        """Width of the keys."""
        return self.k_proj.in_features

    @property
    def vdim(self) -> int:
        """Width of the values."""
        return self.v_proj.in_features

    @property
    def head_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.q_proj.out_features // self.num_heads

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of ``torch.nn.MultiheadAttention``.

        Args:
            query: ``[batch, n, embed_dim]``, or by ``batch_first`` ``[n, batch, embed_dim]``, or
                ``[n, embed_dim]``.
            key: ``[batch, m, kdim]`` or as for `query`.
            value: ``[batch, m, vdim]`` or as for `query`.
            key_padding_mask: ``[batch, m]`` or ``[m]``; true, or minus infinity, where a key is to
                be ignored. Float masks are added to the scores.
            need_weights: Return the attention weights as well.
            attn_mask: ``[n, m]`` or ``[batch * num_heads, n, m]``, of the same meaning.
            average_attn_weights: Return the weights' mean over the heads.
            is_causal: A hint that `attn_mask` is causal, which must be given as well.

        Returns:
            The result, shaped like `query`, and the weights, ``[batch, n, m]``, with a dim of
            heads after the batch if they are not averaged; ``None`` if not needed.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        # Fused attention makes the causal mask itself, where it has no other to add.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, query)
        heads, weights = self._attend(
            *self._split(query, key, value), mask, need_weights=need_weights, causal=causal
        )
        # Length first in memory, like the original's result: dropout behind it draws in that order.
        attended = self.out_proj(heads.permute(2, 0, 1, 3).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return attended.squeeze(1), None if weights is None else weights.squeeze(0)
        return attended.transpose(0, 1) if self.batch_first else attended, weights

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"num_heads={self.num_heads}, batch_first={self.batch_first}"

    def _split(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project, and cut into heads: ``[batch, num_heads, length, head width]`` each."""
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k = k.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return q, self._with_more(k, self.bias_k), self._with_more(v, self.bias_v)

    def _with_more(self, x: Tensor, bias: nn.Parameter | None) -> Tensor:
        """Append the learned and the zero entry to keys or values, cut into heads."""
        if bias is not None:
            more = torch.unflatten(bias, -1, (self.num_heads, -1)).transpose(1, 2)
            x = torch.cat([x, more.expand(x.shape[0], -1, -1, -1)], 2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> Tensor | None:
        """Return what is added to the scores; broadcasts to ``[batch, num_heads, n, m]``."""
        more = (self.bias_k is not None) + self.add_zero_attn
        if more:
            # Nobody is kept from what was appended.
            attn_mask = None if attn_mask is None else F.pad(attn_mask, (0, more))
            key_padding_mask = (
                None if key_padding_mask is None else F.pad(key_padding_mask, (0, more))
            )
        mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
        if mask is not None and mask.dim() == 3:
            mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
        if key_padding_mask is None:
            return mask
        padding = _additive(key_padding_mask, query.dtype)[:, None, None, :]
        return padding if mask is None else mask + padding

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, need_weights: bool,
        causal: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            attended = F.scaled_dot_product_attention(
                q, k, v, mask, dropout, causal, scale=self.scale
            )
            return attended, None
        scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        if dropout > 0.0:
            weights = F.dropout(weights, p=dropout)
        return weights @ v, weights


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return minus infinity where a boolean mask is true; float masks are that already."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Return a layer with these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
