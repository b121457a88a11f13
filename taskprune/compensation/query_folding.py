r"""The map of each head's queries that lets the channels that stay say what all said to the keys.

With a student's queries :math:`X` and keys :math:`K` of one image and head, the teacher's
:math:`Q_t, K_t`, and weights :math:`W` of queries, the change :math:`D` of the queries is

.. math:: D = \arg\min_D \sum_{\mathrm{images}} \| W^{1/2} (E - X D K^T) \|^2
          + \lambda \|D\|^2, \qquad E = Q_t K_t^T - Q_s K^T

where :math:`X` is :math:`Q_s`, with a column of ones where queries may be shifted as well. The
normal equations :math:`\sum A D C + \lambda D = R`, with :math:`A = X^T W X` and :math:`C = K^T K`
of each image, are solved by conjugate gradients, preconditioned by the product of the sums of
:math:`A` and :math:`C`, which is exact where images are alike. Refitting attention in closed form
is from CORP, arXiv:2602.05243; the fit per head to what the smaller network reads is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskprune.compensation.least_squares import TINY, chosen_ridge
from taskprune.importance.distributed import summed

MOST_STEPS = 200
"""Of conjugate gradients."""
CLOSE = 1e-10
"""Part of the first residual at which they end."""


@dataclass(frozen=True, eq=False, slots=True)
class Met:
    """Queries and keys of the same images in both networks, in float64.

    Attributes:
        queries: The teacher's. Shape ``[H, S, n, d]``.
        keys: The teacher's. Shape ``[H, S, m, d]``.
        own_queries: The student's, shape ``[H, S, n, d']``; ``None``: the teacher's that stay.
        own_keys: The student's, shape ``[H, S, m, d']``; ``None`` likewise.
        weights: What each query counts. Shape ``[H, S, n]``.
    """

    queries: Tensor
    keys: Tensor
    own_queries: Tensor | None
    own_keys: Tensor | None
    weights: Tensor

    def parts(self) -> tuple[Met, Met]:
        """Return the images to fit on, and a quarter to choose by; of few images, of queries."""
        dim = 1 if self.queries.shape[1] >= 4 else 2
        size = self.queries.shape[dim]
        cut = size - size // 4
        return self._narrowed(dim, 0, cut), self._narrowed(dim, cut, size - cut)

    def _narrowed(self, dim: int, first: int, size: int) -> Met:
        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.narrow(dim, first, size)

        keys, own_keys = self.keys, self.own_keys
        if dim == 1:
            keys = keys.narrow(1, first, size)
            own_keys = cut(own_keys)
        return Met(
            self.queries.narrow(dim, first, size),
            keys,
            cut(self.own_queries),
            own_keys,
            self.weights.narrow(dim, first, size),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """What the fit needs of some images; ``p`` is ``d'``, or one more with a shift.

    Attributes:
        a: Products of the student's queries. Shape ``[H, S, p, p]``.
        c: Products of the student's keys. Shape ``[H, S, d', d']``.
        r: The right side, summed over images. Shape ``[H, p, d']``.
        e: Squared error before anything changes. Shape ``[H]``.
    """

    a: Tensor
    c: Tensor
    r: Tensor
    e: Tensor

    @classmethod
    def none(cls, like: Tensor, n_heads: int, p: int, width: int) -> Moments:
        """Return the moments of no images."""
        sizes = (n_heads, 0, p, p), (n_heads, 0, width, width), (n_heads, p, width), (n_heads,)
        return cls(*(like.new_zeros(size, dtype=torch.float64) for size in sizes))

    @classmethod
    def of(cls, met: Met, keep: Tensor, *, centred: bool, shifts: bool) -> Moments:
        """Multiply out.

        Args:
            met: Queries and keys.
            keep: Which of the teacher's channels the student has, by head. Shape ``[H, d']``.
            centred: Whether what all keys of an image have in common makes no difference.
            shifts: Whether queries may be shifted.
        """
        keys, own_keys = met.keys, met.own_keys
        if centred:
            keys = keys - keys.mean(2, keepdim=True)
            own_keys = None if own_keys is None else own_keys - own_keys.mean(2, keepdim=True)
        kept_q, gone_q = _split(met.queries, keep)
        kept_k, gone_k = _split(keys, keep)
        x, k = kept_q, kept_k
        # The error as a sum of products each of which is small where networks agree: what of the
        # difference of two large products rounding would leave is amplified by small ridges.
        left, right = [gone_q], [gone_k]
        if met.own_queries is not None and own_keys is not None:
            x, k = met.own_queries, own_keys
            left += [kept_q - x, x]
            right += [kept_k, kept_k - k]
        made, other = torch.cat(left, -1), torch.cat(right, -1)
        if shifts:
            x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        w = met.weights[..., None]
        return cls(
            x.mT @ (w * x),
            k.mT @ k,
            ((x.mT @ (w * made)) @ (other.mT @ k)).sum(1),
            ((made.mT @ (w * made)) * (other.mT @ other)).sum((1, 2, 3)),
        )

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of all images."""
        return cls(
            torch.cat([part.a for part in parts], 1),
            torch.cat([part.c for part in parts], 1),
            torch.stack([part.r for part in parts]).sum(0),
            torch.stack([part.e for part in parts]).sum(0),
        )

    def applied(self, d: Tensor) -> Tensor:
        """Return the sum of ``A D C`` over the images of all processes."""
        return summed((self.a @ d[:, None] @ self.c).sum(1))

    def error(self, d: Tensor) -> float:
        """Return the squared error that a change leaves, of all heads and processes."""
        return float(summed(self.e).sum() + (d * (self.applied(d) - 2 * summed(self.r))).sum())


@dataclass(frozen=True, eq=False)
class QueryFit:
    """What the images that were kept out of it chose.

    Attributes:
        change: ``D``. Shape ``[H, p, d']``.
        ridge: The factor that won; infinite where nothing helps.
        gain: Fraction of the held-out squared error of the products that goes.
    """

    change: Tensor
    ridge: float = torch.inf
    gain: float = 0.0

    @property
    def is_nothing(self) -> bool:
        """Whether things are left alone."""
        return self.ridge == torch.inf


def fit_queries(fitted: Moments, held: Moments) -> QueryFit:
    """Choose the ridge on held-out images, then fit on all; the same in all processes.

    Args:
        fitted: Moments to fit on.
        held: Moments to choose by.
    """
    nothing = QueryFit(torch.zeros_like(fitted.r))
    base = held.error(nothing.change)
    winner, best = chosen_ridge(base, lambda ridge: held.error(_solved(fitted, ridge)))
    if winner == torch.inf:
        return nothing
    change = _solved(Moments.joined([fitted, held]), winner)
    return QueryFit(change, winner, 1 - best / base) if bool(change.isfinite().all()) else nothing


def _solved(moments: Moments, ridge: float) -> Tensor:
    """Return the change of least error under a ridge, relative to the mean of the diagonal."""
    a, c, b = summed(moments.a.sum(1)), summed(moments.c.sum(1)), summed(moments.r)
    n_images = summed(a.new_tensor(float(moments.a.shape[1]))).clamp_min(1)
    diagonals = moments.a.diagonal(dim1=2, dim2=3).mean(2), moments.c.diagonal(dim1=2, dim2=3)
    damping = ridge * summed((diagonals[0] * diagonals[1].mean(2)).sum(1))
    damping = damping.clamp_min(TINY)[:, None, None]
    (a_values, a_vectors), (c_values, c_vectors) = torch.linalg.eigh(a), torch.linalg.eigh(c)
    values = a_values.clamp_min(0)[:, :, None] * c_values.clamp_min(0)[:, None] / n_images

    def preconditioned(r: Tensor) -> Tensor:
        inner = a_vectors.mT @ r @ c_vectors / (values + damping)
        found: Tensor = a_vectors @ inner @ c_vectors.mT
        return found

    d, r = torch.zeros_like(b), b
    z = p = preconditioned(r)
    left = first = (r * z).sum((1, 2))
    for _ in range(MOST_STEPS):
        if bool((left <= CLOSE**2 * first).all()):
            break
        pushed = moments.applied(p) + damping * p
        step = left / (p * pushed).sum((1, 2)).clamp_min(TINY)
        step = torch.where(left > CLOSE**2 * first, step, 0)[:, None, None]
        d, r = d + step * p, r - step * pushed
        z = preconditioned(r)
        now = (r * z).sum((1, 2))
        p = z + (now / left.clamp_min(TINY))[:, None, None] * p
        left = torch.where(step[:, 0, 0] > 0, now, left)
    return d


def _split(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels that stay, and those that go. ``[H, S, n, d] -> [H, S, n, .]``."""
    stays = torch.zeros(x.shape[0], x.shape[3], dtype=torch.bool, device=x.device)
    stays.scatter_(1, keep, True)
    gone = (~stays).nonzero()[:, 1].reshape(len(keep), -1)
    return _taken(x, keep), _taken(x, gone)


def _taken(x: Tensor, columns: Tensor) -> Tensor:
    return x.gather(3, columns[:, None, None].expand(-1, *x.shape[1:3], -1))
