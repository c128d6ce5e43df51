"""Other tasks on the same rows: some classes against others, or a choice of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from planimeter.data.dataset import Dataset
from planimeter.errors import InputError, suggestion

Class = int | str
"""A class by its number or name."""


def grouped(dataset: Dataset, groups: Sequence[Sequence[Class]]) -> Dataset:
    """The data set with the number of its group as the label of each row.

    Rows whose class is in no group are left out, so that `[["automobile"], ["cat"]]` is the task
    car against cat, with labels 0 and 1.

    Raises:
        InputError: fewer than two groups, one is empty, a class is unknown or in two groups.
    """
    numbers = [class_numbers(group, dataset.classes, dataset.class_names) for group in groups]
    check_groups(numbers)
    group_of = torch.full((dataset.classes,), -1)
    for label, members in enumerate(numbers):
        group_of[list(members)] = label
    labels = group_of[dataset.labels]
    kept = (labels >= 0).nonzero().reshape(-1)
    result = replace(
        dataset,
        inputs=dataset.inputs.select(kept),
        labels=labels[kept],
        classes=len(groups),
        class_names=(),
    )
    if dataset.test_inputs is None or dataset.test_labels is None:
        return result
    labels = group_of[dataset.test_labels]
    kept = (labels >= 0).nonzero().reshape(-1)
    return replace(result, test_inputs=dataset.test_inputs.select(kept), test_labels=labels[kept])


def binary(dataset: Dataset, positive: Sequence[Class] | None = None) -> Dataset:
    """The data set with label 1 for the positive classes and 0 for all others.

    Arguments:
        dataset: any.
        positive: some, not all, of its classes; None for `default_positive`.

    Raises:
        InputError: `positive` names no class, all of them, or an unknown one.
    """
    if positive is None:
        positive = default_positive(dataset.name, dataset.classes)
    return grouped(dataset, against_others(positive, dataset.classes, dataset.class_names))


def against_others(
    positive: Sequence[Class], classes: int, names: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """The classes that are not positive, and those that are.

    Raises:
        InputError: as for `binary`.
    """
    ones = class_numbers(positive, classes, names)
    if not 0 < len(ones) < classes:
        raise InputError(
            f"positive classes {sorted(ones)} must be some, not all, of 0 to {classes - 1}"
        )
    return [number for number in range(classes) if number not in ones], sorted(ones)


def default_positive(name: str, classes: int) -> tuple[int, ...]:
    """Class 1 of two classes, 5 to 9 of ten (zhang2021, Section 5.2).

    Raises:
        InputError: there are more; they have to be chosen.
    """
    if classes == 2:
        return (1,)
    if classes == 10:
        return (5, 6, 7, 8, 9)
    raise InputError(f"{name} has {classes} classes: choose those that count as 1")


def check_groups(groups: Sequence[frozenset[int]]) -> None:
    """Refuse groups that are no task."""
    if len(groups) < 2 or not all(groups):
        raise InputError("a task has two or more groups of classes, none of them empty")
    seen: set[int] = set()
    for members in groups:
        if twice := seen & members:
            raise InputError(f"class {min(twice)} stands in two groups")
        seen |= members


def class_numbers(
    wanted: Sequence[Class], classes: int, names: Sequence[str] = ()
) -> frozenset[int]:
    """Classes by number or name, as numbers.

    Raises:
        InputError: there is no such class; suggests one that is written alike.
    """
    numbers = set()
    for item in wanted:
        number = names.index(item) if item in names else item
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        if isinstance(number, str):
            raise InputError(
                f"no class {item!r}; there are {', '.join(names) or f'0 to {classes - 1}'}"
                + suggestion(number, names)
            )
        if not 0 <= number < classes:
            raise InputError(f"no class {number}; they are 0 to {classes - 1}")
        numbers.add(number)
    return frozenset(numbers)
