"""Mini-batches without end, from a position that can be saved and found again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError

Batch = tuple[Tensor, Tensor]
BatchSource = Callable[[torch.Generator], Iterable[Batch]]
"""A generator of random numbers to the batches of one epoch, all its randomness from there."""

_BATCHES_GATHERED = 64  # at once: one gather is faster than many, and a whole epoch may be large


def shuffled(inputs: Tensor, labels: Tensor, batch_size: int) -> BatchSource:
    """Every row once an epoch, in random order; the last batch may be smaller."""

    def epoch(generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(len(labels), generator=generator).to(inputs.device)
        for rows in order.split(batch_size * _BATCHES_GATHERED):
            x, y = inputs[rows], labels[rows]
            yield from zip(x.split(batch_size), y.split(batch_size), strict=True)

    return epoch


class BatchStream:
    """The batches of one epoch after another.

    Its state is that of the generator when the epoch began, and the batches taken since: a
    restored stream draws the epoch again and skips those.

    Arguments:
        source: makes the batches of one epoch.
        seed: of the generator that the source is given.
        whole: give all batches of an epoch at once.
    """

    def __init__(self, source: BatchSource, seed: int, *, whole: bool = False) -> None:
        self.epochs = 0
        """Epochs that are complete."""
        self._source, self._whole = source, whole
        self._generator = torch.Generator().manual_seed(seed)
        self._start = self._generator.get_state()
        self._taken = 0
        self._running: Iterator[Batch] | None = None
        self._ahead: Batch | None = None

    def take(self) -> list[Batch]:
        """The next batch, in a list; all batches of an epoch where the stream is `whole`."""
        if self._running is None:
            self._begin()
        batches: list[Batch] = []
        while self._ahead is not None and (self._whole or not batches):
            batches.append(self._ahead)
            self._advance()
        if self._ahead is None:
            self.epochs, self._taken, self._running = self.epochs + 1, 0, None
        return batches

    def state(self) -> dict[str, Any]:
        """Where the stream is."""
        between = self._running is None
        start = self._generator.get_state() if between else self._start
        return {"epochs": self.epochs, "start": start, "taken": self._taken}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a stream of the same source was when it gave this state."""
        self.epochs, self._running = state["epochs"], None
        self._generator.set_state(state["start"])
        self._taken = 0
        if state["taken"]:
            self._begin()
            for _ in range(state["taken"]):
                self._advance()

    def _begin(self) -> None:
        self._start = self._generator.get_state()
        self._running = iter(self._source(self._generator))
        self._taken = 0
        self._ahead = next(self._running, None)
        if self._ahead is None:
            raise InputError("the source of training batches gave none for an epoch")

    def _advance(self) -> None:
        assert self._running is not None
        self._ahead = next(self._running, None)  # looked ahead: an epoch ends with its last batch
        self._taken += 1
