"""A data set in memory: inputs as bytes, labels, and what its classes are called."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from planimeter.data.stored import StoredInputs
from planimeter.printing import short_repr


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and labels; `test_inputs` is None where the set is one pool without a test part.

    `inputs[rows]` are float32, images in [0, 1] of shape (n, channels, height, width). Classes are
    numbers from 0; `class_names` is empty where they have no other names.
    """

    name: str
    inputs: StoredInputs
    labels: Int[Tensor, " n"]
    test_inputs: StoredInputs | None
    test_labels: Int[Tensor, " m"] | None
    classes: int
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return short_repr(self)
