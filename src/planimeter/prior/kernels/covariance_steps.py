r"""What each layer does to the covariance of infinitely many features.

A feature map h of infinitely many channels c at positions p of a grid has the covariance

.. math:: K_\delta(x, x')[p] = \lim \tfrac1C \sum_c h_{cp}(x)\, h_{c,p+\delta}(x'),

one image for every offset :math:`\delta`, over the positions at which p and :math:`p + \delta` both
lie on the grid; pairs outside count 0. Written like this, convolutions and activations do not mix
offsets: for networks without pooling :math:`\delta = 0` is enough, and where pooling asks for all
offsets they can come one after the other. With weights of variance
:math:`\sigma_w^2/\mathrm{fan\_in}` and biases of variance :math:`\sigma_b^2`:

.. math::
   \text{convolution, k taps, stride s:} \quad & K'_\delta[p] = \sigma_b^2 + \tfrac{\sigma_w^2}{k}
        \sum_{t} K_{s\delta}[sp + t] \\
   \text{flatten, linear:} \quad & K' = \sigma_b^2 + \sigma_w^2\, \mathrm{mean}_p\, K_0[p] \\
   \text{average pooling, k taps:} \quad & K'_\delta[p] = \tfrac{1}{k^2} \sum_{t, u}
        K_{s\delta + u - t}[sp + t] \\
   \text{sum of independent branches:} \quad & K' = K^{(1)} + K^{(2)} \\
   \text{layer norm:} \quad & K' = \frac{K - \mu m' - m \mu' + \mu \mu'}
        {\sqrt{(\nu - \mu^2 + \epsilon)(\nu' - \mu'^2 + \epsilon)}}

where m is the mean of the features at a position (0 after a linear layer, not after ReLU), and
:math:`\mu, \nu` are the mean and second moment over what layer norm normalises.

Sources: Lee et al. 2018; Novak et al. 2019 and Garriga-Alonso et al. 2019 (convolutions); Xiao et
al. 2020, Appendix (layer norm of zero-mean features). Derivations: docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.prior.kernels.activations import Dual

Offset = tuple[int, int]
Node = tuple[int, Offset]
"""A step's covariance at an offset."""


@runtime_checkable
class Moments(Protocol):
    """What is known of the rows or of the columns of a tile, by the number of a step.

    Tensors are (height, width, rows, 1) or (height, width, 1, columns).
    """

    def variance(self, step: int) -> Float[Tensor, "h w r c"]:
        """K_0(x, x)."""
        ...

    def prepared(self, step: int, dual: Dual) -> Float[Tensor, "h w r c"]:
        """What an activation needs of the variance."""
        ...

    def mean(self, step: int) -> Float[Tensor, "h w r c"] | None:
        """The mean over features; None where it is zero."""
        ...


Sides = tuple[Moments, Moments]


@dataclass(frozen=True)
class Step:
    """One layer. `size` is the grid of its output, `sources` are the steps that it reads."""

    size: tuple[int, int]
    sources: tuple[int, ...]

    overwrites = False
    """Whether `fold` may write into the value that it is given."""

    def needs(self, offset: Offset) -> Iterator[Node]:
        """The covariances that are folded into the one at this offset."""
        return ((source, offset) for source in self.sources)

    def fold(
        self,
        total: Float[Tensor, "h w r c"] | None,
        value: Float[Tensor, "a b r c"],
        node: Node,
        offset: Offset,
        moments: Sides,
    ) -> Float[Tensor, "h w r c"]:
        """Add what a needed covariance contributes; `total` is None for the first."""
        raise NotImplementedError

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """The mean over features from those of the sources; None for zero."""
        return None


@dataclass(frozen=True)
class Input(Step):
    """The data itself: `number` says which of a program's inputs it is."""

    number: int


@dataclass(frozen=True)
class Linear(Step):
    """A fully connected layer, on the flattened grid."""

    weight: float
    bias: float
    overwrites = True

    def needs(self, offset: Offset) -> Iterator[Node]:
        """The diagonal."""
        return iter([(self.sources[0], (0, 0))])

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """The mean over positions."""
        if value.shape[:2] != (1, 1):
            value = value.mean((0, 1), keepdim=True)
        return affine(value, self.weight, self.bias)


@dataclass(frozen=True)
class Activation(Step):
    """A function of single features, which are Gaussian."""

    dual: Dual
    overwrites = True

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """The dual activation."""
        left, right = (side.prepared(self.sources[0], self.dual) for side in moments)
        return self.dual.covariance(value, here(left, offset), there(right, offset))

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """That of the dual."""
        return self.dual.mean(moments.variance(self.sources[0]))


@dataclass(frozen=True)
class Sum(Step):
    """The sum of branches with weights of their own."""

    overwrites = True

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """The sum."""
        return value if total is None else total.add_(value)

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """The sum of the means that are not zero."""
        known = [mean for mean in means if mean is not None]
        return sum(known[1:], start=known[0]) if known else None


@dataclass(frozen=True)
class Scale(Step):
    """Multiplication by a number."""

    factor: float
    overwrites = True

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """Times the square."""
        return value.mul_(self.factor**2)

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """Times the number."""
        return None if means[0] is None else means[0] * self.factor


@dataclass(frozen=True)
class LayerNorm(Step):
    """Layer norm over the features of a position, or over those of all positions."""

    epsilon: float
    over_positions: bool
    overwrites = True

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """Centred and divided."""
        (m, mu, left), (n, nu, right) = (self._of(side) for side in moments)
        if m is not None and n is not None and mu is not None and nu is not None:
            value.addcmul_(here(m, offset), there(n, offset), value=-1)
            if self.over_positions:
                value.addcmul_(here(m - mu, offset), there(n - nu, offset))
        return value.mul_(here(left, offset)).mul_(there(right, offset))

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """Zero, or over all positions only on average."""
        if not self.over_positions or means[0] is None:
            return None
        mean, centre, factor = self._of(moments)
        return None if mean is None or centre is None else (mean - centre) * factor

    def _of(self, side: Moments) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """The mean, what is subtracted, and what it is multiplied by."""
        second, mean = side.variance(self.sources[0]), side.mean(self.sources[0])
        centre = mean
        if self.over_positions:
            second = second.mean((0, 1), keepdim=True).expand(second.shape)
            centre = None if mean is None else mean.mean((0, 1), keepdim=True).expand(mean.shape)
        spread = second if centre is None else (second - centre.square()).clamp_min_(0.0)
        return mean, centre, (spread + self.epsilon).rsqrt_()


def here(field: Float[Tensor, "h w ..."], offset: Offset) -> Float[Tensor, "a b ..."]:
    """A field at the positions p for which p + offset is on the grid too."""
    return _cut(field, (-offset[0], -offset[1]))


def there(field: Float[Tensor, "h w ..."], offset: Offset) -> Float[Tensor, "a b ..."]:
    """The same field at p + offset."""
    return _cut(field, offset)


def _cut(field: Tensor, start: Offset) -> Tensor:
    for axis in (0, 1):
        if start[axis]:
            length = field.shape[axis] - abs(start[axis])
            field = field.narrow(axis, max(0, start[axis]), length)
    return field


def affine(value: Tensor, factor: float, shift: float) -> Tensor:
    """value <- factor value + shift, in one pass."""
    constant = torch.full((), shift, dtype=value.dtype, device=value.device)
    return torch.add(constant, value, alpha=factor, out=value)
