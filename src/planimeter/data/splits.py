"""A binary task split into a training set S, a test set E and a pool for attack sets A.

The three are disjoint. Which rows go where depends on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.data.datasets import Dataset
from planimeter.errors import InputError


@dataclass(frozen=True)
class BinarySplit:
    """S, E and the attack pool of a binary task; labels are 0/1 and true."""

    train_inputs: Float[Tensor, "m c h w"]
    train_labels: Int[Tensor, " m"]
    test_inputs: Float[Tensor, "e c h w"]
    test_labels: Int[Tensor, " e"]
    pool_inputs: Float[Tensor, "p c h w"]
    pool_labels: Int[Tensor, " p"]
    classes: int = 2

    def attack_set(self, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """`size` rows of the pool with their labels flipped, chosen by the seed.

        Raises:
            InputError: the pool is smaller, or there are more than two classes.

        Source: zhang2021, Section 5.2.
        """
        if size and self.classes > 2:
            raise InputError(f"attack sets flip labels, which {self.classes} classes do not allow")
        if size > len(self.pool_labels):
            raise InputError(
                f"an attack set of {size} rows was asked for, but only {len(self.pool_labels)} are "
                f"left beside the training and test sets"
            )
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.pool_labels), generator=generator)[:size]
        return self.pool_inputs[rows], 1 - self.pool_labels[rows]


def binary_split(
    dataset: Dataset,
    *,
    train: int,
    test: int,
    positive: Sequence[int] = (5, 6, 7, 8, 9),
    seed: int = 0,
) -> BinarySplit:
    """Split a data set into S, E and the attack pool, with classes made binary.

    Arguments:
        dataset: E comes from its test part where it has one, else from the same pool as S.
        train: |S|.
        test: |E|.
        positive: the classes that become 1; all others become 0.
        seed: of the choice of rows.

    Raises:
        InputError: too few rows, or `positive` names no class or all of them.
    """
    chosen = torch.tensor(sorted(set(positive)))
    if (
        not 0 < len(chosen) < dataset.classes
        or int(chosen.min()) < 0
        or int(chosen.max()) >= dataset.classes
    ):
        raise InputError(
            f"positive classes {sorted(set(positive))} must be some, not all, of 0 to "
            f"{dataset.classes - 1}"
        )
    tested = dataset.test_labels
    task = replace(
        dataset,
        labels=torch.isin(dataset.labels, chosen).long(),
        test_labels=None if tested is None else torch.isin(tested, chosen).long(),
        classes=2,
    )
    return split(task, train=train, test=test, seed=seed)


def split(dataset: Dataset, *, train: int, test: int, seed: int = 0) -> BinarySplit:
    """Split a data set into S, E and the attack pool, with its classes as they are.

    Raises:
        InputError: too few rows.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randperm(len(dataset.labels), generator=generator)
    if dataset.test_inputs is None or dataset.test_labels is None:
        available, needed = len(own), train + test
        test_rows, pool_rows = own[train : train + test], own[train + test :]
        test_inputs, test_labels = dataset.inputs, dataset.labels
    else:
        available, needed = len(own), train
        test_rows = torch.randperm(len(dataset.test_labels), generator=generator)[:test]
        pool_rows = own[train:]
        test_inputs, test_labels = dataset.test_inputs, dataset.test_labels
    if needed > available or len(test_rows) < test or min(train, test) < 1:
        raise InputError(
            f"{dataset.name} has too few rows for {train} training and {test} test rows"
        )
    train_rows = own[:train]
    return BinarySplit(
        dataset.inputs[train_rows],
        dataset.labels[train_rows],
        test_inputs[test_rows],
        test_labels[test_rows],
        dataset.inputs[pool_rows],
        dataset.labels[pool_rows],
        dataset.classes,
    )
