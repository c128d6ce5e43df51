"""What sampling random networks found: functions, how often each, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.printing import short_repr
from planimeter.prior.sampling.boolean import lempel_ziv_complexity
from planimeter.prior.sampling.intervals import wilson_interval
from planimeter.prior.sampling.packing import pack_function, unpack


@dataclass(frozen=True)
class FunctionCounts:
    """Functions of random networks with their counts, the most frequent first.

    Arguments:
        words: (k, w) the functions, a bit an input, packed.
        counts: (k,) how often each was seen.
        missing: (k,) the most that a count may fall short by; 0 where it is exact.
        samples: networks drawn.
        requested: networks asked for.
        complete: False after an interrupt, of the sampling or of a second count.
        inputs: n, the length of a function.
        threshold: no function that is not listed was seen more often than this.
        exact_top: so many leading functions are the most frequent ones, with exact counts.
        settings: what the stream was made from.
        seconds: wall time spent.
    """

    words: NDArray[np.uint64]
    counts: NDArray[np.int64]
    missing: NDArray[np.int64]
    samples: int
    requested: int
    complete: bool
    inputs: int
    threshold: int
    exact_top: int
    settings: dict[str, Any]
    seconds: float

    def __repr__(self) -> str:
        return short_repr(self)

    def functions(self, top: int | None = None) -> Bool[Tensor, "top n"]:
        """The outputs of the most frequent functions; all of them without `top`."""
        return torch.from_numpy(unpack(self.words[:top], self.inputs))

    def complexity(self, top: int | None = None) -> Float[Tensor, " top"]:
        """Lempel-Ziv complexities of the most frequent functions, in bits."""
        return lempel_ziv_complexity(self.functions(top))

    def probabilities(self, top: int | None = None) -> list[Estimate]:
        r"""P(f) of the most frequent functions, :math:`c/N \pm \sqrt{P (1 - P)/N}`."""
        return [
            self._probability(int(count), int(missing))
            for count, missing in zip(self.counts[:top], self.missing[:top], strict=True)
        ]

    def intervals(
        self, top: int | None = None, level: float = 0.95
    ) -> tuple[Float[Tensor, " top"], Float[Tensor, " top"]]:
        """Lower and upper ends of Wilson's intervals of P(f); wider where a count is not exact."""
        counts, missing = self.counts[:top], self.missing[:top]
        lower, _ = wilson_interval(counts, self.samples, level)
        # A bound on a count may exceed the samples, the count cannot.
        highest = np.minimum(counts + missing, self.samples)
        _, upper = wilson_interval(highest, self.samples, level)
        return torch.from_numpy(lower), torch.from_numpy(upper)

    def count(self, function: Shaped[Tensor, " n"]) -> tuple[int, int]:
        """How often a function was seen, and the most that this number may fall short by.

        Arguments:
            function: (n,) outputs, 0/1 or -1/+1 or False/True.

        Raises:
            InputError: it has another number of outputs.
        """
        if torch.as_tensor(function).numel() != self.inputs:
            raise InputError(
                f"the function has {torch.as_tensor(function).numel()} outputs, the networks were "
                f"sampled on {self.inputs} inputs"
            )
        found = np.flatnonzero((self.words == pack_function(function)).all(axis=1))
        if len(found) == 0:
            return 0, self.threshold
        return int(self.counts[found[0]]), int(self.missing[found[0]])

    def log_prior(self, function: Shaped[Tensor, " n"]) -> Estimate:
        r"""log P(f), with the error :math:`\sqrt{(1 - P)/c}` of a count c.

        For a function that was not seen the value is -inf, and the method says the upper end of
        its 95 % interval. A count that may fall short has that added to its error.

        Arguments:
            function: (n,) outputs, 0/1 or -1/+1 or False/True.
        """
        count, missing = self.count(function)
        if count == 0:
            highest = np.array([min(missing, self.samples)])
            upper = float(wilson_interval(highest, self.samples)[1][0])
            text = f"not seen in {self.samples} samples: log P < {math.log(upper):.4g} (95 %)"
            return Estimate(-math.inf, math.nan, text, seed=self.settings["seed"])
        return self._probability(count, missing).log()

    def _probability(self, count: int, missing: int) -> Estimate:
        p = count / self.samples
        stderr = math.sqrt(p * (1 - p) / self.samples)
        text = f"{count} of {self.samples} networks"
        if missing:
            text += f", up to {missing} more before it was kept"
            stderr = math.hypot(stderr, missing / self.samples)
        return Estimate(p, stderr, text, seed=self.settings["seed"], seconds=self.seconds)

    def as_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain JSON values, with the most frequent functions as strings of 0 and 1."""
        lower, upper = self.intervals(top)
        strings = ["".join("01"[bit] for bit in row) for row in self.functions(top).int().tolist()]
        return {
            "samples": self.samples,
            "requested": self.requested,
            "complete": self.complete,
            "inputs": self.inputs,
            "distinct": len(self.counts) if self.threshold == 0 else None,
            "threshold": self.threshold,
            "exact_top": self.exact_top,
            "settings": self.settings,
            "seconds": self.seconds,
            "functions": [
                {
                    "function": string,
                    "count": int(self.counts[i]),
                    "missing": int(self.missing[i]),
                    "probability": int(self.counts[i]) / self.samples,
                    "lower": float(lower[i]),
                    "upper": float(upper[i]),
                    "complexity": float(complexity),
                }
                for i, (string, complexity) in enumerate(
                    zip(strings, self.complexity(top), strict=True)
                )
            ],
        }
