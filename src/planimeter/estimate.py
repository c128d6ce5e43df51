r"""A number with its standard error and how it was obtained.

Arithmetic propagates errors to first order. An estimate remembers the independent errors that it
is made of and how strongly each moves it, so that x * x, x - x or (x + y) / x are right:

.. math:: \sigma_f^2 = \sum_k \Big(\sum_i \partial_i f\, \frac{\partial x_i}{\partial e_k}
          \sigma_k \Big)^2

over the errors e_k of the estimates that arithmetic started from. Those of different calls count
as independent, also where they drew the same random numbers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

Errors = dict[object, float]
"""Where an error comes from, to how much of it there is, with its sign."""

NORMAL = 1.959963984540054
"""The normal distribution's 97.5 % quantile: value ± NORMAL stderr covers 95 %."""


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (0 where the value is exact up to rounding), and its provenance.

    One meaning everywhere: value ± 1.96 stderr covers 95 %. An error that comes from the spread of
    a few samples is therefore already widened (`widening`), and `dof` says of how few.

    Arguments:
        value: the number.
        stderr: standard error of `value`, at least 0; NaN when it could not be estimated.
        method: how the number was obtained, in a few words.
        products: matrix-vector products spent.
        converged: False when an iteration behind the number stopped before its tolerance was met.
        seed: of the random numbers behind it; None where there are none.
        dtype, device: in and on which the products were computed.
        seconds: wall time spent.
        dof: degrees of freedom of the spread behind `stderr`; None where there is no such spread.
    """

    value: float
    stderr: float = 0.0
    method: str = ""
    products: int = 0
    converged: bool = True
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    seconds: float = field(default=0.0, compare=False)
    dof: int | None = None
    _errors: ClassVar[Errors]  # no field: each instance sets its own, which nothing else shows

    def __post_init__(self) -> None:
        if self.stderr < 0:
            raise ValueError(f"a standard error cannot be negative: {self.stderr}")
        self._consists_of({object(): self.stderr})

    def _consists_of(self, errors: Errors) -> Estimate:
        object.__setattr__(self, "_errors", errors)
        return self

    def __str__(self) -> str:
        text = format_with_error(self.value, self.stderr)
        return text if self.converged else f"{text} (NOT CONVERGED)"

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    def _propagate(self, other: Estimate | float, value: float, *slopes: float) -> Estimate:
        """The estimate `value` whose error follows from the slopes in self and in `other`."""
        right = other if isinstance(other, Estimate) else Estimate(float(other))
        errors: Errors = dict.fromkeys((*self._errors, *right._errors), 0.0)
        for operand, slope in zip((self, right), slopes, strict=True):
            for origin, error in operand._errors.items():
                if error != 0:  # an infinite slope of an exact number is no error
                    errors[origin] += slope * error
        errors = {origin: error for origin, error in errors.items() if error != 0}
        return replace(
            self,
            value=value,
            stderr=math.hypot(*errors.values()),
            method=self.method or right.method,
            products=self.products + right.products,
            converged=self.converged and right.converged,
            seed=right.seed if self.seed is None else self.seed,
            seconds=self.seconds + right.seconds,
            dof=min((d for d in (self.dof, right.dof) if d is not None), default=None),
        )._consists_of(errors)

    def __add__(self, other: Estimate | float) -> Estimate:
        return self._propagate(other, self.value + _value(other), 1.0, 1.0)

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self._propagate(other, self.value - _value(other), 1.0, -1.0)

    def __mul__(self, other: Estimate | float) -> Estimate:
        return self._propagate(other, self.value * _value(other), _value(other), self.value)

    def __truediv__(self, other: Estimate | float) -> Estimate:
        divisor = _value(other)
        ratio = self.value / divisor
        return self._propagate(other, ratio, 1.0 / divisor, -ratio / divisor)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Estimate:
        return Estimate(float(other)) - self

    def __rtruediv__(self, other: float) -> Estimate:
        return Estimate(float(other)) / self

    def __neg__(self) -> Estimate:
        return self * -1.0

    def sqrt(self) -> Estimate:
        """The square root; a value of 0 keeps sqrt(stderr) as its error."""
        root = math.sqrt(self.value)
        slope = 0.5 / root if root > 0 else (self.stderr**-0.5 if self.stderr > 0 else 0.0)
        return self._propagate(0.0, root, slope, 0.0)

    def log(self) -> Estimate:
        """The natural logarithm."""
        return self._propagate(0.0, math.log(self.value), 1.0 / self.value, 0.0)


def _value(number: Estimate | float) -> float:
    return number.value if isinstance(number, Estimate) else float(number)


def standard_error(samples: Float[Tensor, " s"]) -> float:
    r"""Standard error of the mean of samples, widened for few of them.

    .. math:: \frac{t_{0.975, s-1}}{1.96}\, \frac{\mathrm{std}}{\sqrt s},

    so that value ± 1.96 errors covers 95 % also when the spread comes from a handful of samples.
    """
    count = len(samples)
    return widening(count) * float(samples.std()) / math.sqrt(count)


def skewed_standard_error(samples: Float[Tensor, " s"]) -> float:
    r"""Standard error of the mean of samples that have a long tail on one side.

    .. math:: \frac{1}{1.96}\, \frac{\mathrm{std}}{\sqrt s}
              \left(t + |\hat\gamma|\, \frac{1 + 2 t^2}{6 \sqrt s}\right),

    with t that of `standard_error` and the skewness :math:`\hat\gamma` of the samples: the limit on
    the side of the tail, taken on both, since few samples often miss the tail.

    Source: Johnson 1978.
    """
    count, spread = len(samples), float(samples.std())
    if spread == 0:
        return 0.0
    skewness = float(((samples - samples.mean()) / samples.std(correction=0)).pow(3).mean())
    t = NORMAL * widening(count)
    wider = abs(skewness) * (1 + 2 * t**2) / (6 * math.sqrt(count))
    return (t + wider) / NORMAL * spread / math.sqrt(count)


def widening(count: int) -> float:
    """By how much Student's t for the spread of `count` samples is wider than the normal."""
    return float(stdtrit(count - 1, 0.975)) / NORMAL


def format_with_error(value: float, stderr: float) -> str:
    """`93.7 ± 1.2`: the error to two significant digits, the value to the same decimal place."""
    if stderr == 0 or not math.isfinite(value):
        return f"{value:.6g}"
    if not math.isfinite(stderr):
        return f"{value:.6g} ± {stderr}"
    place = 1 - math.floor(math.log10(stderr))
    if -3 <= place <= 6 and abs(value) < 1e7:
        decimals = max(place, 0)
        return f"{round(value, place):.{decimals}f} ± {round(stderr, place):.{decimals}f}"
    if place > 6 and 1e-3 <= abs(value) < 1e7:
        return f"{value:.{min(place, 12)}f} ± {stderr:.1e}"
    exponent = math.floor(math.log10(max(abs(value), stderr)))
    scale, decimals = 10.0**exponent, max(place + exponent, 0)
    return f"({value / scale:.{decimals}f} ± {stderr / scale:.{decimals}f})e{exponent:+03d}"
