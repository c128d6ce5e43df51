"""Wrong labels, for attack sets and for the corruption of a training set.

With C classes, y becomes

* `uniform`: one of the C - 1 others, each equally probable, drawn for each row;
* `permuted`: pi(y), for one permutation pi of the classes that leaves none in its place, drawn
  uniformly from all such.

Both flip the labels of a binary task. A generator gives one label after another, so the labels of
the first k rows do not depend on how many follow.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from planimeter.errors import InputError, suggestion

WRONG_LABELS = ("uniform", "permuted")


def wrong_labels(
    labels: Int[Tensor, " n"], classes: int, kind: str, generator: torch.Generator
) -> Int[Tensor, " n"]:
    """A wrong label for each row.

    Arguments:
        labels: true ones, 0...classes - 1.
        classes: two or more.
        kind: one of WRONG_LABELS.
        generator: what is drawn comes from it.

    Raises:
        InputError: there is only one class, or no such kind.
    """
    if classes < 2:
        raise InputError("with one class no label is wrong")
    if kind == "uniform":
        shifts = torch.randint(1, classes, labels.shape, generator=generator)
        return (labels + shifts) % classes
    if kind == "permuted":
        return _derangement(classes, generator)[labels]
    raise InputError(
        f"no wrong labels {kind!r}; there are {', '.join(WRONG_LABELS)}"
        + suggestion(kind, WRONG_LABELS)
    )


def _derangement(size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    """Permutations until one moves everything: about e = 2.7 of them."""
    while True:
        permutation = torch.randperm(size, generator=generator)
        if bool((permutation != torch.arange(size)).all()):
            return permutation
