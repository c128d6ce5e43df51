"""The mini-batches of networks that are trained side by side, each from its own rows.

All rows lie in one tensor, S first; a network's data is a list of row numbers. Its shuffles are
those of `fit_to_zero_error` with the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.errors import InputError
from planimeter.network.stack import padded_rows

Rows = tuple[Tensor, Tensor]


class MemberData:
    """S and all attack sets in one tensor.

    Arguments:
        train: S.
        attacks: A of every network, None for none.
    """

    def __init__(self, train: Rows, attacks: Sequence[Rows | None]) -> None:
        given = [a if a is not None and len(a[1]) else None for a in attacks]
        parts = [train, *(a for a in given if a is not None)]
        for inputs, labels in parts:
            if len(inputs) != len(labels) or inputs.shape[1:] != train[0].shape[1:]:
                raise InputError(
                    f"{len(labels)} labels and inputs of shape {tuple(inputs.shape)} do not go "
                    f"with training inputs of shape {tuple(train[0].shape)}"
                )
        self.train_rows = len(train[1])
        if not self.train_rows:
            raise InputError("the training set is empty")
        self.inputs = torch.cat([inputs for inputs, _ in parts])
        self.labels = torch.cat([labels for _, labels in parts])
        self._buffer = self.inputs[:0]
        self.members: list[Int[Tensor, " m"]] = []
        start = self.train_rows
        for attack in given:
            size = 0 if attack is None else len(attack[1])
            own = torch.arange(start, start + size)
            self.members.append(torch.cat([torch.arange(self.train_rows), own]))
            start += size

    def rows(self, numbers: Int[Tensor, "B n"]) -> tuple[Float[Tensor, "B n ..."], Tensor]:
        """Inputs and labels of rows; the next call overwrites the inputs."""
        numbers = numbers.to(self.inputs.device)
        row = self.inputs.shape[1:]
        shape = (numbers.numel(), *row)
        if self._buffer.shape != shape:
            # Memory of this size is given back and fetched anew each time, at the cost of a step.
            self._buffer = self.inputs.new_empty(shape)
        torch.index_select(self.inputs, 0, numbers.reshape(-1), out=self._buffer)
        return self._buffer.view(*numbers.shape, *row), self.labels[numbers]

    def train(self, part: slice, networks: int) -> tuple[Float[Tensor, "B n ..."], Tensor]:
        """Inputs and labels of rows of S, the same for every network, and not copied."""
        inputs, labels = self.inputs[part], self.labels[part]
        return inputs.expand(networks, *inputs.shape), labels.expand(networks, -1)


@dataclass
class Member:
    """The rows of one network, and the epoch that it is in.

    Arguments:
        rows: row numbers of S and A.
        generator: of its shuffles.
        weights: (batches, width) 1 / size of the batch, 0 where there is no row.
        order: (batches, width) row numbers of the epoch; where there is no row, any.
        position: batches taken of it.
    """

    rows: Int[Tensor, " m"]
    generator: torch.Generator
    weights: Float[Tensor, "k n"]
    order: Int[Tensor, "k n"]
    position: int

    def shuffle(self) -> None:
        """Begin an epoch."""
        shuffled = self.rows[torch.randperm(len(self.rows), generator=self.generator)]
        self.order.view(-1)[self._places()] = shuffled
        self.position = 0

    def _places(self) -> Tensor:
        return self.weights.view(-1).nonzero()[:, 0]


class MemberBatches:
    """Mini-batches of all networks at once, as row numbers and weights.

    Arguments:
        data: where the rows are.
        members: of the networks of the stack in their order, their numbers in `data` and the seeds
            of their shuffles.
        batch_size: rows a mini-batch, None for all.
    """

    def __init__(
        self, data: MemberData, members: Sequence[tuple[int, int]], batch_size: int | None
    ) -> None:
        largest = max(len(data.members[b]) for b, _ in members)
        self.width = padded_rows(min(batch_size or largest, largest))
        dtype, device = data.inputs.dtype, data.inputs.device
        self.members = [
            _member(data.members[b], self.width, batch_size, seed, dtype) for b, seed in members
        ]
        self.device = device
        self._rows = torch.empty(0, len(members), self.width, dtype=torch.long)
        self._weights = torch.empty(0, len(members), self.width, dtype=dtype)
        self._next = 0

    @property
    def lengths(self) -> list[int]:
        """Mini-batches in an epoch of every network."""
        return [len(member.order) for member in self.members]

    def take(self) -> tuple[Int[Tensor, "B n"], Float[Tensor, "B n"]]:
        """Row numbers and weights of the next mini-batch of every network."""
        if self._next == len(self._rows):
            self._assemble()
        self._next += 1
        return self._rows[self._next - 1], self._weights[self._next - 1]

    def keep(self, kept: list[int]) -> None:
        """Go on with some of the networks."""
        self.members = [self.members[b] for b in kept]
        self._rows, self._weights = self._rows[:, kept], self._weights[:, kept]

    def _assemble(self) -> None:
        """All mini-batches until the first network ends an epoch."""
        for member in self.members:
            if member.position == len(member.order):
                member.shuffle()
        steps = min(len(member.order) - member.position for member in self.members)
        parts = [(m, slice(m.position, m.position + steps)) for m in self.members]
        self._rows = torch.stack([m.order[part] for m, part in parts], 1).to(self.device)
        self._weights = torch.stack([m.weights[part] for m, part in parts], 1).to(self.device)
        for member in self.members:
            member.position += steps
        self._next = 0


def _member(
    rows: Tensor, width: int, batch_size: int | None, seed: int, dtype: torch.dtype
) -> Member:
    sizes = [len(part) for part in rows.split(batch_size or len(rows))]
    weights = torch.zeros(len(sizes), width, dtype=dtype)
    for batch, size in enumerate(sizes):
        weights[batch, :size] = 1 / size
    order = rows[:1].repeat(len(sizes), width)
    generator = torch.Generator().manual_seed(seed)
    return Member(rows, generator, weights, order, position=len(sizes))
