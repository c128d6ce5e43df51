"""Convolutions and average pooling as steps on covariances: formulas in `covariance_steps`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from planimeter.prior.covariance_steps import (
    Moments,
    Node,
    Offset,
    Sides,
    Step,
    affine,
    here,
    there,
)


@dataclass(frozen=True)
class Convolution(Step):
    """A convolution with one group, padded with zeros; pairs are (height, width)."""

    weight: float
    bias: float
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def needs(self, offset: Offset) -> Iterator[Node]:
        """The offset in the coordinates of the input."""
        return iter([(self.sources[0], scaled(offset, self.stride))])

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """The sum over the window, one axis after the other."""
        for axis in (0, 1):
            length = self.size[axis] - abs(offset[axis])
            first, apart = -self.padding[axis], self.dilation[axis]
            taps = [first + apart * tap for tap in range(self.kernel[axis])]
            value = _window_sum(value, axis, length, taps, self.stride[axis])
        return affine(value, self.weight / (self.kernel[0] * self.kernel[1]), self.bias)


@dataclass(frozen=True)
class AveragePool(Step):
    """Average pooling; with `counts_padding` False, padding does not count in the mean."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    counts_padding: bool
    source_size: tuple[int, int]

    def needs(self, offset: Offset) -> Iterator[Node]:
        """All offsets between two taps of the windows at p and p + offset."""
        centre = scaled(offset, self.stride)
        reach = [
            [
                d
                for d in range(centre[a] - self.kernel[a] + 1, centre[a] + self.kernel[a])
                if abs(d) < self.source_size[a]
            ]
            for a in (0, 1)
        ]
        return ((self.sources[0], (dy, dx)) for dy in reach[0] for dx in reach[1])

    def fold(
        self, total: Tensor | None, value: Tensor, node: Node, offset: Offset, moments: Sides
    ) -> Tensor:
        """The sum over the pairs of taps that are this offset apart."""
        for axis in (0, 1):
            value = self._sum(value, axis, offset[axis], node[1][axis])
        value = (
            value.div_(self._counts(offset, value))
            if self._uneven
            else value.mul_(1 / (self.kernel[0] * self.kernel[1]) ** 2)
        )
        return value if total is None else total.add_(value)

    def mean(self, means: list[Tensor | None], moments: Moments) -> Tensor | None:
        """The pooled mean."""
        (mean,) = means
        if mean is None:
            return None
        for axis in (0, 1):
            taps = [tap - self.padding[axis] for tap in range(self.kernel[axis])]
            mean = _window_sum(mean, axis, self.size[axis], taps, self.stride[axis])
        counts = (
            self._counts((0, 0), mean).sqrt() if self._uneven else (self.kernel[0] * self.kernel[1])
        )
        return mean / counts

    @property
    def _uneven(self) -> bool:
        return not self.counts_padding and self.padding != (0, 0)

    def _sum(self, value: Tensor, axis: int, offset: int, apart: int) -> Tensor:
        step, length = self.stride[axis], self.size[axis] - abs(offset)
        between = apart - step * offset  # of the taps u - t
        taps = range(max(0, -between), min(self.kernel[axis], self.kernel[axis] - between))
        # The first entry of `value` is position max(0, -apart), that of the result
        # max(0, -offset): both count from the first p at which p + offset is on the grid too.
        shift = step * max(0, -offset) - max(0, -apart) - self.padding[axis]
        if length == 1 and step >= 1:
            first, last = taps[0] + shift, taps[-1] + shift + 1
            window = value.narrow(axis, max(first, 0), min(last, value.shape[axis]) - max(first, 0))
            return window.sum(axis, keepdim=True)
        return _window_sum(value, axis, length, [tap + shift for tap in taps], step)

    def _counts(self, offset: Offset, like: Tensor) -> Tensor:
        """Number of pairs of taps on the grid, for p and p + offset."""
        pairs = []
        for axis in (0, 1):
            first = torch.arange(self.size[axis]) * self.stride[axis] - self.padding[axis]
            last = (first + self.kernel[axis]).clamp_max_(self.source_size[axis])
            pairs.append((last - first.clamp_min_(0)).to(like))
        counts = (pairs[0][:, None] * pairs[1])[:, :, None, None]
        return here(counts, offset) * there(counts, offset)


def scaled(offset: Offset, stride: tuple[int, int]) -> Offset:
    """An offset in the coordinates of the input."""
    return offset[0] * stride[0], offset[1] * stride[1]


def _window_sum(value: Tensor, axis: int, length: int, taps: list[int], stride: int) -> Tensor:
    """out[i] = sum over taps t of value[stride i + t] along an axis, 0 outside; always new."""
    shape = list(value.shape)
    limit, shape[axis] = shape[axis], length
    # Taps that reach every output first: the first of them then takes the place of zeros.
    spans = []
    for tap in taps:
        first = max(0, -(tap // stride))
        last = min(length - 1, (limit - 1 - tap) // stride)
        if first <= last:
            spans.append((last - first + 1, first, tap))
    spans.sort(key=lambda span: -span[0])
    whole = bool(spans) and spans[0][0] == length
    total = value.new_empty(shape) if whole else value.new_zeros(shape)
    pieces = [
        (first, count, _every(value, axis, stride * first + tap, count, stride))
        for count, first, tap in spans
    ]
    if whole and len(pieces) > 1:
        (_, _, one), (first, count, two) = pieces[:2]
        _add_into(total, axis, one, first, count, two)
        pieces = pieces[2:]
    elif whole:
        total.copy_(pieces[0][2])
        pieces = pieces[1:]
    for first, count, piece in pieces:
        total.narrow(axis, first, count).add_(piece)
    return total


def _add_into(total: Tensor, axis: int, one: Tensor, first: int, count: int, two: Tensor) -> None:
    """total = one, plus two where it reaches: one pass over most of it rather than two."""
    torch.add(one.narrow(axis, first, count), two, out=total.narrow(axis, first, count))
    if first:
        total.narrow(axis, 0, first).copy_(one.narrow(axis, 0, first))
    rest = total.shape[axis] - first - count
    if rest:
        end = first + count
        total.narrow(axis, end, rest).copy_(one.narrow(axis, end, rest))


def _every(value: Tensor, axis: int, start: int, count: int, stride: int) -> Tensor:
    index = [slice(None)] * value.ndim
    index[axis] = slice(start, start + stride * (count - 1) + 1, stride)
    return value[tuple(index)]
