"""A logarithm of a probability with its error, and everything it was obtained from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from planimeter.estimate import Estimate, format_with_error


@dataclass(frozen=True)
class LogProbability:
    """log P(f) with its error and everything it was obtained from. Natural logarithms.

    Arguments:
        value: log P(f).
        stderr: its standard error: from independent runs by Student's t ("smc"), from the counts
            ("direct"), from the weights ("minimax"), of rounding ("exact"); NaN for "ep", which has
            none. Value plus or minus 1.96 of it covers 95 %.
        ep: the value of expectation propagation alone; NaN where it was not needed.
        corrected: EP with the second-order cumulant correction; NaN where it was not needed.
        runs: the value of each independent run; empty where there are none.
        noise: variance added to the kernel's diagonal; 0 is Heaviside, 1 the probit link.
        sweeps: of EP.
        residual: of EP: largest mismatch of a tilted and a posterior mean, in posterior standard
            deviations.
        converged: whether EP met its tolerance (a Monte Carlo value is unbiased even when not).
        alarms: what a reader should know before believing the numbers; usually empty.
        impossible: when P(f) = 0, two inputs that are the same but labelled oppositely; or inputs
            of a kernel of low rank, a positive combination of whose signed outputs is always 0.
        method: "smc", "ep" (with the cumulant correction), "direct", "minimax" or "exact".
        rank: of the kernel, where P(f) = 0 because of it.
    """

    value: float
    stderr: float
    ep: float
    corrected: float
    runs: tuple[float, ...]
    noise: float
    sweeps: int
    residual: float
    converged: bool
    alarms: tuple[str, ...] = ()
    impossible: tuple[int, ...] | None = None
    method: str = "smc"
    rank: int | None = None

    @property
    def log10(self) -> float:
        """The value as a decimal logarithm."""
        return self.value / math.log(10)

    @property
    def dof(self) -> int | None:
        """Degrees of freedom of the spread of runs behind the error; None where there is none."""
        return len(self.runs) - 1 if self.runs else None

    def estimate(self) -> Estimate:
        """Value and error alone, for arithmetic that carries errors along."""
        text = f"log P, {self.method}"
        return Estimate(self.value, self.stderr, text, converged=self.converged, dof=self.dof)

    def __str__(self) -> str:
        if self.impossible is not None:
            return f"-inf ({'; '.join([self._why_impossible(self.impossible), *self.alarms])})"
        text, method = format_with_error(self.value, self.stderr), self.method
        if method == "ep":
            text, method = f"{self.value:.3f}", "ep with cumulant correction: no error is known"
        notes = [method]
        if not math.isnan(self.ep):
            state = f"converged in {self.sweeps} sweeps"
            if not self.converged:
                state = f"NOT CONVERGED in {self.sweeps} sweeps, residual {self.residual:.1e}"
            notes.append(f"EP {self.ep:.3f} {state}")
        return f"{text} ({'; '.join([*notes, f'noise {self.noise:g}', *self.alarms])})"

    def _why_impossible(self, inputs: tuple[int, ...]) -> str:
        *most, last = inputs
        names = f"inputs {', '.join(map(str, most))} and {last}"
        if self.rank is None:
            return f"{names} are the same but labelled differently"
        return (
            f"the kernel has rank {self.rank}, and no function of it has the labels of {names}: a "
            f"positive combination of their outputs, signed by the labels, is always 0"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; -inf becomes the string "-inf", NaN becomes None."""
        fields = {name: plain(value) for name, value in asdict(self).items()}
        lists = {"runs": list(self.runs), "alarms": list(self.alarms)}
        return fields | lists | {"dof": self.dof}


def plain(value: Any) -> Any:
    """A number as JSON has it: -inf becomes the string "-inf", NaN becomes None."""
    if value == -math.inf:
        return "-inf"
    return None if isinstance(value, float) and math.isnan(value) else value
