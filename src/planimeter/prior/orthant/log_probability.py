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
        stderr: its standard error: from independent runs ("smc"), from the counts ("direct"), from
            the weights ("minimax"), of rounding ("exact"); NaN for "ep", which has none.
        ep: the value of expectation propagation alone; NaN where it was not needed.
        corrected: EP with the second-order cumulant correction; NaN where it was not needed.
        runs: the value of each independent run; empty where there are none.
        noise: variance added to the kernel's diagonal; 0 is Heaviside, 1 the probit link.
        sweeps: of EP.
        residual: of EP: largest mismatch of a tilted and a posterior mean, in posterior standard
            deviations.
        converged: whether EP met its tolerance (a Monte Carlo value is unbiased even when not).
        alarms: what a reader should know before believing the numbers; usually empty.
        impossible: two inputs that are the same but labelled oppositely, when P(f) = 0.
        method: "smc", "ep" (with the cumulant correction), "direct", "minimax" or "exact".
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
    impossible: tuple[int, int] | None = None
    method: str = "smc"

    @property
    def log10(self) -> float:
        """The value as a decimal logarithm."""
        return self.value / math.log(10)

    def estimate(self) -> Estimate:
        """Value and error alone, for arithmetic that carries errors along."""
        return Estimate(self.value, self.stderr, f"log P, {self.method}", converged=self.converged)

    def __str__(self) -> str:
        if self.impossible is not None:
            i, j = self.impossible
            return f"-inf (inputs {i} and {j} are the same but labelled differently)"
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

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; -inf becomes the string "-inf", NaN becomes None."""
        fields = {name: _plain(value) for name, value in asdict(self).items()}
        return fields | {"runs": list(self.runs), "alarms": list(self.alarms)}


def _plain(value: Any) -> Any:
    if value == -math.inf:
        return "-inf"
    return None if isinstance(value, float) and math.isnan(value) else value
