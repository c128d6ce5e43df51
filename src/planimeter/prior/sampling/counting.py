r"""How often each function occurs in a stream too long to keep: lossy counting with its proof.

A table holds for each function f a count c(f) and a bound u(f) on what may be missing from it.
With t the *threshold* of the table, at any time

.. math:: f \text{ in the table}: \; c(f) \le n(f) \le c(f) + u(f), \qquad
          f \text{ not in it}: \; n(f) \le t,

where n(f) is the number of times that f has occurred. New functions enter with u = t; while t = 0
nothing was ever dropped, and all counts are exact. When the table outgrows its budget, the
functions with the least c + u are dropped, and t becomes the largest c + u among them. Both
statements stay true, whatever the stream. Hence

* every function that occurred more than t times is in the table;
* a count with u = 0 is exact: that function was never dropped. In particular the frequent ones,
  which are met before the table first fills and are never among the least, have exact counts.

Counts of functions with u > 0 are made exact, where needed, by going through the same stream
again and counting those alone (`Recount`).

On the CPU, rows are sorted by a 64-bit hash; runs of equal hashes are split by the words
themselves, so a collision of hashes cannot merge two functions.

Source: Manku & Motwani 2002 (lossy counting), with the threshold that the data needed in place of
one fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planimeter.prior.sampling.device_counting import merged_on
from planimeter.prior.sampling.packing import mixed


@dataclass(frozen=True)
class CountTable:
    """Counts of functions after a number of batches.

    Arguments:
        words: (k, w) the functions, in no order of meaning.
        counts: (k,) times seen since each entered the table.
        missing: (k,) the most that may have been seen before; 0 where the count is exact.
        threshold: no function outside the table was seen more often than this.
        batches: that have been counted.
    """

    words: NDArray[np.uint64]
    counts: NDArray[np.int64]
    missing: NDArray[np.int64]
    threshold: int = 0
    batches: int = 0

    def with_batches(
        self, batches: Sequence[NDArray[np.uint64]], budget: int, device: str = "cpu"
    ) -> CountTable:
        """The table after more batches of functions, cut to the budget if it has outgrown it.

        Arguments:
            device: that sorts.
        """
        if not batches:
            return self
        new = np.concatenate(batches)
        everything = (
            np.concatenate([self.words, new]),
            np.concatenate([self.counts, np.ones(len(new), dtype=np.int64)]),
            np.concatenate([self.missing, np.full(len(new), self.threshold)]),
        )
        words, counts, missing = (
            merged(*everything) if device == "cpu" else merged_on(device, *everything)
        )
        table = replace(
            self,
            words=words,
            counts=counts,
            missing=missing,
            batches=self.batches + len(batches),
        )
        return table if len(counts) <= budget else table.cut(budget // 2)

    def cut(self, size: int) -> CountTable:
        """At most `size` functions: those that may have occurred most often."""
        upper = self.counts + self.missing
        place = len(upper) - 1 - size
        threshold = int(np.partition(upper, place)[place])
        kept = upper > threshold
        return replace(
            self,
            words=self.words[kept],
            counts=self.counts[kept],
            missing=self.missing[kept],
            threshold=max(threshold, self.threshold),
        )

    def contenders(self, top: int) -> NDArray[np.bool_]:
        """Which functions may be among the `top` most frequent ones."""
        if len(self.counts) <= top:
            return np.ones(len(self.counts), dtype=bool)
        place = len(self.counts) - top
        least = np.partition(self.counts, place)[place]
        return self.counts + self.missing >= least


def empty_table(words: int) -> CountTable:
    """A table before the first batch."""
    nothing = np.zeros(0, dtype=np.int64)
    return CountTable(np.zeros((0, words), dtype=np.uint64), nothing, nothing)


@dataclass(frozen=True)
class Recount:
    """Exact counts of chosen functions, in a second pass over the same stream.

    Arguments:
        words: (k, w) the functions.
        counts: (k,) times seen in this pass.
        batches: that have been counted.
    """

    words: NDArray[np.uint64]
    counts: NDArray[np.int64]
    batches: int = 0

    def with_batches(self, batches: Sequence[NDArray[np.uint64]]) -> Recount:
        """The counts after more batches."""
        if not batches:
            return self
        found = np.concatenate(batches)
        chosen = len(self.words)
        # Chosen functions first in their group: what follows them is what is counted.
        order, starts = grouped(np.concatenate([self.words, found]))
        sizes = np.diff(np.append(starts, len(order)))
        first = np.minimum.reduceat(order, starts)
        known = first < chosen
        counts = self.counts.copy()
        counts[first[known]] += sizes[known] - 1
        return replace(self, counts=counts, batches=self.batches + len(batches))


def merged(
    words: NDArray[np.uint64], counts: NDArray[np.int64], missing: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Each function once: with the sum of its counts, and the least that may be missing.

    A function that was there already has its own bound, which is never the larger one.
    """
    order, starts = grouped(words)
    return (
        words[order[starts]],
        np.add.reduceat(counts[order], starts),
        np.minimum.reduceat(missing[order], starts),
    )


def grouped(words: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """An order that puts equal rows together, and where each group starts in it."""
    keys = mixed(words)
    order = np.argsort(keys)
    keys = keys[order]
    another = keys[1:] != keys[:-1]
    # Row by row of equal keys, compare the words themselves.
    equal = np.flatnonzero(~another)
    differ = (words[order[equal]] != words[order[equal + 1]]).any(axis=1)
    if differ.any():
        # Two functions with one hash: sort by the words as well, or one could lie in two groups.
        order = np.lexsort((*words.T, mixed(words)))
        another = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order, np.flatnonzero(np.concatenate([[True], another]))
