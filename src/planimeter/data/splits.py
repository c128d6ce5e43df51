"""A task split into a training set S, a test set E and a pool for attack sets A.

The three are disjoint. Which rows go where depends on the seed alone. Rows stay in the data set's
memory, as they are stored; floats are made of those that are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.data.channel_constants import constants
from planimeter.data.classes import Class, binary
from planimeter.data.dataset import Dataset
from planimeter.data.stored import StoredInputs
from planimeter.data.wrong_labels import wrong_labels
from planimeter.errors import InputError
from planimeter.printing import short_repr


@dataclass(frozen=True, eq=False)
class Split:
    """S, E and the attack pool of a task.

    Arguments:
        train, test, pool: rows of S, E and the pool.
        train_labels, test_labels, pool_labels: 0...classes - 1, true unless S was `corrupted`.
        classes: how many.
        wrong: how labels are made wrong, see `wrong_labels`.
    """

    train: StoredInputs
    train_labels: Int[Tensor, " m"]
    test: StoredInputs
    test_labels: Int[Tensor, " e"]
    pool: StoredInputs
    pool_labels: Int[Tensor, " p"]
    classes: int = 2
    wrong: str = "uniform"

    def __repr__(self) -> str:
        return short_repr(self)

    @cached_property
    def train_inputs(self) -> Float[Tensor, "m c *size"]:
        """S as floats, made when first asked for."""
        return self.train[:]

    @cached_property
    def test_inputs(self) -> Float[Tensor, "e c *size"]:
        """E as floats, made when first asked for."""
        return self.test[:]

    def attack_set(self, size: int, seed: int) -> tuple[Float[Tensor, "a ..."], Int[Tensor, " a"]]:
        """`size` rows of the pool with wrong labels, both chosen by the seed.

        Sets with one seed are a ladder: the larger contains the smaller, labels and all.

        Raises:
            InputError: the pool is smaller.

        Source: zhang2021, Section 5.2, where labels are binary, so that all are flipped.
        """
        rows, labels = self._attack(size, seed)
        return self.pool[rows], labels

    def with_attack_set(self, size: int, seed: int) -> tuple[StoredInputs, Int[Tensor, " n"]]:
        """S and then the attack set, as stored rows for `training_batches`."""
        rows, labels = self._attack(size, seed)
        return self.train.joined(self.pool.select(rows)), torch.cat([self.train_labels, labels])

    def corrupted(self, fraction: float, seed: int = 0) -> Split:
        """The same rows, with wrong labels on a part of S.

        Arguments:
            fraction: of S, in [0, 1]; the number of rows is rounded. Those of a smaller fraction
                with the same seed are among them, with the same labels.
            seed: of the choice of rows and labels.

        Raises:
            InputError: the fraction is out of range.
        """
        if not 0 <= fraction <= 1:
            raise InputError(f"corruption is a fraction of S, from 0 to 1, got {fraction}")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train_labels), generator=generator)
        wrong = wrong_labels(self.train_labels[order], self.classes, self.wrong, generator)
        rows = slice(round(fraction * len(order)))
        labels = self.train_labels.clone()
        labels[order[rows]] = wrong[rows]
        return replace(self, train_labels=labels)

    def _attack(self, size: int, seed: int) -> tuple[Int[Tensor, " a"], Int[Tensor, " a"]]:
        if not 0 <= size <= len(self.pool_labels):
            raise InputError(
                f"an attack set of {size} rows was asked for, but only {len(self.pool_labels)} are "
                f"left beside the training and test sets"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.pool_labels), generator=generator)
        wrong = wrong_labels(self.pool_labels[order], self.classes, self.wrong, generator)
        return order[:size], wrong[:size]


def split(
    dataset: Dataset,
    *,
    train: int,
    test: int,
    seed: int | None = 0,
    normalisation: str = "none",
    wrong: str = "uniform",
) -> Split:
    """Split a data set into S, E and the attack pool.

    Arguments:
        dataset: E comes from its test part where it has one, else from the same pool as S.
        train: |S|.
        test: |E|.
        seed: of the choice of rows; None for the first ones, in their order.
        normalisation: a name that `constants` knows; its statistics are those of S.
        wrong: how labels are made wrong, see `wrong_labels`.

    Raises:
        InputError: too few rows, or no such normalisation or wrong labels.
    """
    generator = torch.Generator().manual_seed(seed or 0)

    def ordered(rows: int) -> Int[Tensor, " rows"]:
        return torch.arange(rows) if seed is None else torch.randperm(rows, generator=generator)

    own = ordered(len(dataset.labels))
    if dataset.test_inputs is None or dataset.test_labels is None:
        available, needed = len(own), train + test
        test_rows, pool_rows = own[train : train + test], own[train + test :]
        test_inputs, test_labels = dataset.inputs, dataset.labels
    else:
        available, needed = len(own), train
        test_rows = ordered(len(dataset.test_labels))[:test]
        pool_rows = own[train:]
        test_inputs, test_labels = dataset.test_inputs, dataset.test_labels
    if needed > available or len(test_rows) < test or train < 1 or test < 0:
        beside = "" if dataset.test_labels is None else f" and {len(test_labels)} of its test part"
        raise InputError(
            f"{dataset.name} has too few rows for {train} training and {test} test rows: they "
            f"come from {len(own)}{beside}"
        )
    wrong_labels(dataset.labels[:0], dataset.classes, wrong, generator)  # complains now
    mean, std = constants(normalisation, dataset.inputs.select(own[:train]))
    inputs, test_inputs = (s.normalised(mean, std) for s in (dataset.inputs, test_inputs))
    return Split(
        inputs.select(own[:train]),
        dataset.labels[own[:train]],
        test_inputs.select(test_rows),
        test_labels[test_rows],
        inputs.select(pool_rows),
        dataset.labels[pool_rows],
        dataset.classes,
        wrong,
    )


def binary_split(
    dataset: Dataset,
    *,
    train: int,
    test: int,
    positive: Sequence[Class] | None = None,
    seed: int | None = 0,
) -> Split:
    """`split` with the classes made binary: the positive ones become 1, all others 0.

    Raises:
        InputError: too few rows, or `positive` names no class or all of them.
    """
    return split(binary(dataset, positive), train=train, test=test, seed=seed)
