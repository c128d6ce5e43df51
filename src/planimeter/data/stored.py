"""Inputs kept as bytes, given as floats.

A pixel of b levels is stored as a byte v and given as

.. math:: x = (v / (b - 1) - \\mathrm{mean}_c) / \\mathrm{std}_c

in float32, for the rows that are asked for only. 50,000 CIFAR images are 154 MB as bytes and 614 MB
as floats. Rows chosen from a set share its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from planimeter.data.normalisation import normalise
from planimeter.errors import InputError


@dataclass(frozen=True, eq=False)
class StoredInputs:
    """Rows of inputs: `stored[rows]` are float32, `len(stored)` their number.

    Arguments:
        values: bytes, or float32 for what is no image.
        largest: what the values are divided by first.
        rows: which of the values these inputs are, in order; None for all.
        mean, std: a number a channel, see `normalise`; None for zeros and ones.
    """

    values: Shaped[Tensor, "all c *size"]
    largest: float = 1.0
    rows: Int[Tensor, " n"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.values if self.rows is None else self.rows)

    @property
    def shape(self) -> torch.Size:
        """(n, channels, ...)."""
        return torch.Size([len(self), *self.values.shape[1:]])

    def __getitem__(
        self, rows: int | slice | Sequence[int] | Int[Tensor, " k"]
    ) -> Float[Tensor, "k c *size"]:
        """The rows as floats, on the device of the values."""
        if isinstance(rows, int):
            return self[[range(len(self))[rows]]][0]
        return self.to_floats(self.raw(rows))

    def raw(self, rows: slice | Sequence[int] | Int[Tensor, " k"]) -> Shaped[Tensor, "k c *size"]:
        """The rows as they are stored."""
        if isinstance(rows, Tensor):
            rows = rows.to(self.values.device if self.rows is None else self.rows.device)
        if self.rows is not None:
            rows = self.rows[rows].to(self.values.device)
        return self.values[rows]

    def to_floats(self, raw: Shaped[Tensor, "k c *size"]) -> Float[Tensor, "k c *size"]:
        """What stored rows stand for, on any device; a raw row is divided, then normalised."""
        # CUDA multiplies by the reciprocal of a number, and rounds otherwise: divide by a tensor.
        floats = raw.float()
        if self.largest != 1:
            floats = floats / torch.full((), self.largest, device=raw.device)
        return normalise(floats, self.mean, self.std)

    def select(self, rows: Int[Tensor, " k"]) -> StoredInputs:
        """Some of the rows, by number, without copying them."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def joined(self, others: StoredInputs) -> StoredInputs:
        """These rows and then the others, which have to be from the same set."""
        if others.values is not self.values or (others.mean, others.std) != (self.mean, self.std):
            raise InputError("only rows of one set, normalised alike, can be joined")
        both = [
            torch.arange(len(part)) if part.rows is None else part.rows for part in (self, others)
        ]
        return replace(self, rows=torch.cat(both))

    def normalised(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> StoredInputs:
        """The same rows, normalised by these constants instead; see `normalise`.

        Raises:
            InputError: not one number a channel, or no numbers that one can divide by.
        """
        changed = replace(
            self,
            mean=None if mean is None else tuple(mean),
            std=None if std is None else tuple(std),
        )
        changed.to_floats(self.values[:0])  # complains now rather than at the first batch
        return changed

    def to(self, device: torch.device | str) -> StoredInputs:
        """The stored values on another device."""
        return replace(self, values=self.values.to(device))
