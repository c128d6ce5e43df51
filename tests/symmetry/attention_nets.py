"""Small networks that multiply activations: attention in many spellings, gates, powers."""

import torch
import torch.nn.functional as F
from torch import nn


class Hand(nn.Module):
    """One head without a norm."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(5, 5) for _ in range(4))
        self.last = nn.Linear(5, 3)

    def attend(self, q, k, v):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    def forward(self, x):
        return self.last(self.o(self.attend(self.q(x), self.k(x), self.v(x))).mean(1))


class Fused(Hand):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Einsum(Hand):
    def attend(self, q, k, v):
        scores = torch.einsum("ntd,nsd->nts", q, k).softmax(-1)
        return torch.einsum("nts,nsd->ntd", scores, v)


class Masked(Hand):
    def attend(self, q, k, v):
        scores = torch.baddbmm(torch.zeros(1, 1, 1).to(q), q, k.mT)
        later = torch.ones(6, 6).triu(1).bool()
        return torch.bmm(scores.masked_fill(later, -torch.inf).softmax(-1), v)


class Packed(Hand):
    """Query, key and value from one matrix."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(5, 15)
        del self.q, self.k, self.v

    def forward(self, x):
        return self.last(self.o(self.attend(*self.qkv(x).chunk(3, -1))).mean(1))


class Cut(nn.Module):
    """Parts of one parameter as three layers."""

    def __init__(self):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(12, 5)), nn.Parameter(torch.randn(12))
        self.o = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        parts = zip(self.w.chunk(3), self.b.split(4), strict=True)
        q, k, v = (F.linear(x, w, b) for w, b in parts)
        return torch.matmul((q @ k.mT / 2).softmax(-1) @ v, self.o).mean(1)


class Overlapping(nn.Module):
    """Two layers that share some rows of a parameter."""

    def __init__(self):
        super().__init__()
        self.w, self.o = nn.Parameter(torch.randn(6, 5)), nn.Linear(4, 3)

    def forward(self, x):
        return self.o(F.linear(x, self.w[:4]).relu() + F.linear(x, self.w[2:]).relu()).mean(1)


class Heads(nn.Module):
    """A matrix for each head."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(2, 5, 4)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(2, 4, 3))

    def forward(self, x):
        q, k, v = (torch.einsum("ntd,hdf->nhtf", x, w) for w in (self.q, self.k, self.v))
        heads = F.scaled_dot_product_attention(q, k, v)
        return torch.einsum("nhtf,hfo->nto", heads, self.o).mean(1)


class Gated(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 3)
        self.act = act

    def forward(self, x):
        return self.c(self.a(x) * self.act(self.b(x))).mean(1)


class Between(nn.Module):
    """An operation between two layers."""

    def __init__(self, act, width=8):
        super().__init__()
        self.a, self.c, self.act = nn.Linear(5, 8), nn.Linear(width, 3), act

    def forward(self, x):
        return self.c(self.act(self.a(x))).mean(1)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 3), nn.Linear(6, 3)
        self.w = nn.Bilinear(4, 3, 6)

    def forward(self, x):
        return self.c(self.w(self.a(x), self.b(x)).relu()).mean(1)


class Multihead(nn.Module):
    def __init__(self, weights=False, rows=6, **settings):
        super().__init__()
        self.m = nn.MultiheadAttention(8, 2, batch_first=True, **settings)
        self.e, self.h = nn.Linear(5, 8), nn.Linear(8, 3)
        self.weights, self.rows = weights, rows

    def forward(self, x):
        x = self.e(x)
        query = x if self.rows == 6 else x[:, : self.rows]
        return self.h(self.m(query, x, x, need_weights=self.weights)[0]).mean(1)


class SelfScores(Hand):
    """The query is its own key: the scores allow no factor."""

    def forward(self, x):
        q = self.q(x)
        return self.last(self.o(self.attend(q, q, self.v(x))).mean(1))
