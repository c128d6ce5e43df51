"""Products with batches that nothing is kept for, by the fastest of three ways.

A ``program`` (`planimeter.products.program`) repeats the operations of a forward derivative, and
``reverse`` derivatives of the gradient check it; ``forward`` derivatives stand in where the two
differ or one of them fails. Where forward and reverse derivatives differ, the gradient is that of
no function, and reverse ones are trusted. ``differences`` are used where they are asked for alone.
"""

from __future__ import annotations

import warnings
from functools import partial

import torch

from planimeter.errors import InputError, MeasurementWarning, NotApplicableError
from planimeter.machine.memory import is_out_of_memory
from planimeter.products.agreement import agree, difference, elsewhere, seconds
from planimeter.products.batches import Batch, BatchedLoss, Parameters
from planimeter.products.curvatures import Curvature, Directions, LinearMap
from planimeter.products.differences import asking_for_float64, cut_off, step_along, widened
from planimeter.products.program import Programs
from planimeter.products.tape import TapeError

SLOWER_ANEW = 1.1
"""Reverse derivatives need more memory: they have to be faster by this factor."""
WITHOUT = "products='differences' needs none, and has about eight digits"


class Anew:
    """(batch, its index) -> the curvature of that batch as a linear map.

    Arguments:
        curvature: which matrix.
        function: the loss; its pieces are what the ways are tried on.
        parameters: where.
        insisted: "forward" or "reverse", so that no clock decides; None for the fastest.
    """

    def __init__(
        self,
        curvature: Curvature,
        function: BatchedLoss,
        parameters: Parameters,
        insisted: str | None,
    ) -> None:
        self.curvature, self.function, self.parameters = curvature, function, parameters
        self.insisted, self.forward_is_wrong = insisted, False
        self.device = next(iter(parameters.values())).device
        self.precision = max(torch.finfo(p.dtype).eps for p in parameters.values())
        self.wide = any(p.dtype != torch.float64 for p in parameters.values())
        self.reset()

    def reset(self) -> None:
        """Forget what was chosen."""
        self.way = "reverse"
        self.programs = Programs(self.curvature, self.function, self.parameters)

    def __call__(self, batch: Batch, index: int) -> LinearMap:
        """The product with one piece."""
        if self.way == "program":
            return self.programs(batch)
        if self.way == "forward":
            return self.curvature.forward(self.function, self.parameters, batch)
        if self.way == "differences":
            return partial(self._difference, batch)
        return self.curvature.graph(self.function, self.parameters, batch, index)

    def choose(self, directions: Directions) -> None:
        """By a program, forward or reverse, whichever is right and fastest."""
        index, _, batch = next(self.function.pieces())
        found: dict[str, Directions] = {}
        times: dict[str, float] = {}
        failure = ""

        def attempt(name: str) -> None:
            nonlocal failure
            self.way = name
            try:
                found[name] = self(batch, index)(directions)
                times[name] = 0.0 if self.insisted else self._fastest(batch, index, directions)
            except (TapeError, RuntimeError, NotImplementedError) as error:
                if is_out_of_memory(error) or isinstance(error, InputError):
                    raise
                failure = str(error).splitlines()[0]

        if not self.insisted:
            attempt("program")
        attempt("reverse")
        # A program is what forward derivatives do: these are only needed where it is in doubt.
        if len(found) < 2 or not self._holds("reverse", directions):
            attempt("forward")
            if "reverse" not in found and "forward" not in found:
                raise NotApplicableError(
                    f"the {self.curvature.name} cannot be computed: an operation of the model or "
                    f"the loss has no second derivative ({failure}); {WITHOUT}"
                )
            if "reverse" in found and "forward" in found:
                self.way = "reverse"
                reverse = self(batch, index)
                if not agree(
                    self.precision, reverse, directions, found["reverse"], found["forward"]
                ):
                    other = elsewhere(directions)
                    forward = self.curvature.forward(self.function, self.parameters, batch)(other)
                    if not agree(self.precision, reverse, other, reverse(other), forward):
                        self.warn_of(found["forward"], found["reverse"])
            if "reverse" in found or not self._holds("forward", directions):
                times.pop("program", None)
        if self.forward_is_wrong:
            self.way = "reverse"
        elif self.insisted in found:
            self.way = str(self.insisted)
        else:
            if "reverse" in times:
                times["reverse"] *= SLOWER_ANEW
            self.way = min(times, key=lambda name: times[name])

    def _difference(self, batch: Batch, directions: Directions) -> Directions:
        """In float64, or in the model's dtype where it does not run so."""
        if self.wide:
            given = widened((self.parameters, cut_off(batch), directions))
            try:
                with asking_for_float64():
                    return self._by_step(*given)
            except (RuntimeError, TypeError) as error:
                if is_out_of_memory(error):
                    raise
                self.wide = False
        return self._by_step(self.parameters, cut_off(batch), directions)

    def _by_step(self, parameters: Parameters, batch: Batch, directions: Directions) -> Directions:
        step = step_along(list(parameters.values()), directions)
        return self.curvature.difference(self.function, parameters, batch, directions, step)

    def _holds(self, other: str, directions: Directions) -> bool:
        """Whether the program of one batch is right for others too."""
        for number, (index, _, batch) in enumerate(self.function.pieces()):
            self.way = other
            expected = self(batch, index)(directions)
            self.way = "program"
            try:
                product = self(batch, index)
                if not agree(self.precision, product, directions, product(directions), expected):
                    return False
            except (TapeError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                return False
            if number == 1:
                break
        return True

    def _fastest(self, batch: Batch, index: int, directions: Directions) -> float:
        """Seconds of a product that is computed anew: the least of three, or more of fast ones."""
        times: list[float] = []
        while len(times) < 3 or (len(times) < 9 and sum(times) < 0.05):
            times.append(seconds(lambda: self(batch, index)(directions), self.device))
        return min(times)

    def warn_of(self, found: Directions, expected: Directions) -> None:
        """Trust reverse derivatives from now on, and say so."""
        self.forward_is_wrong = True
        warnings.warn(
            f"two ways to compute a product with the {self.curvature.name} differ by "
            f"{difference(found, expected):.1e}: going on with autograd's graph (a detach() or a "
            f"straight-through estimator in the model makes its gradient that of no function)",
            MeasurementWarning,
            stacklevel=8,
        )
