"""Products that keep nothing of the data, with the differentiation done once.

Differentiating is work of its own: a graph is built, or a function is traced, for every product,
before any number is computed. A `Program` is a tape of a whole product, from the parameters, the
batch and the direction on, so that it holds for every batch of the same shapes and keeps nothing
but a list of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from planimeter.products.batches import Batch, BatchedLoss, Parameters
from planimeter.products.curvatures import Curvature, Directions, LinearMap
from planimeter.products.tape import Tape, record

LARGEST_NUMBER = 4
"""Shapes of batches that are recorded; where there are more, recording is not worth it."""


class Programs:
    """A program for each shape that batches have.

    Arguments:
        curvature: which matrix.
        function: the loss.
        parameters: where.
    """

    def __init__(self, curvature: Curvature, function: BatchedLoss, parameters: Parameters) -> None:
        self.curvature, self.function, self.parameters = curvature, function, parameters
        self.tapes: dict[Any, Tape] = {}

    def __call__(self, batch: Batch) -> LinearMap:
        """The product with one batch.

        Raises (when called): TapeError, where the product cannot be recorded.
        """
        leaves, layout = tree_flatten(batch)
        shapes = tuple(
            (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in leaves
        )
        key = str(layout), shapes
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def product(directions: Directions) -> Directions:
            given = [*directions, *self.parameters.values(), *tensors]
            if key not in self.tapes:
                if len(self.tapes) == LARGEST_NUMBER:
                    return self.curvature.forward(self.function, self.parameters, batch)(directions)
                self.tapes[key] = self._recorded(leaves, layout, given)
            return self.tapes[key](given)

        return product

    def _recorded(self, leaves: list[Any], layout: TreeSpec, given: Sequence[Tensor]) -> Tape:
        count = len(self.parameters)

        def everything(*tensors: Tensor) -> list[Tensor]:
            data = iter(tensors[2 * count :])
            batch = tree_unflatten(
                [next(data) if isinstance(leaf, Tensor) else leaf for leaf in leaves], layout
            )
            parameters = dict(zip(self.parameters, tensors[count : 2 * count], strict=True))
            return self.curvature.forward(self.function, parameters, batch)(list(tensors[:count]))

        return record(everything, given, program=True)
