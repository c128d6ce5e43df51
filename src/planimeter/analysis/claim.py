"""What a paper says, as an analysis whose interval decides it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from planimeter.analysis.conditions import contrast
from planimeter.analysis.correlation import correlate
from planimeter.analysis.difference import correlation_difference
from planimeter.analysis.granulated import granulated_tau, sign_error
from planimeter.analysis.limits_of_agreement import agreement
from planimeter.analysis.mutual_information import conditional_mutual_information
from planimeter.analysis.partial import partial_correlation
from planimeter.analysis.population import Population
from planimeter.analysis.result import Result, TooFewError, check_confidence
from planimeter.analysis.share import share_above
from planimeter.analysis.slopes import trend
from planimeter.errors import InputError, suggestion

Direction = Literal["above", "below", "within"]
Outcome = Literal["supported", "contradicted", "undecided"]
Provenance = Literal["paper", "code", "data"]

ANALYSES: dict[str, Callable[..., Result]] = {
    "correlation": correlate,
    "partial_correlation": partial_correlation,
    "correlation_difference": correlation_difference,
    "granulated_tau": granulated_tau,
    "sign_error": sign_error,
    "conditional_mutual_information": conditional_mutual_information,
    "contrast": contrast,
    "trend": trend,
    "agreement": agreement,
    "share_above": share_above,
}
"""Analyses by the names that claims use; each takes a population and settings of its signature."""


@dataclass(frozen=True)
class PaperValue:
    """A number that a paper gives.

    Arguments:
        value: the number, or what is said in words where there is none.
        where: figure, table or section.
        provenance: stated in the "paper", read in the authors' "code", or computed from "data" that
            they published. What is none of these is not printed as the paper's.
    """

    value: float | str
    where: str
    provenance: Provenance

    def __post_init__(self) -> None:
        _check_choice("provenance", self.provenance, Provenance)

    def __str__(self) -> str:
        number = f"{self.value:g}" if isinstance(self.value, float | int) else self.value
        return f"{number} ({self.where}) [{self.provenance}]"


@dataclass(frozen=True)
class Claim:
    """A sentence, the analysis that tests it, and on which side of what its interval must lie.

    Arguments:
        sentence: what is claimed.
        analysis: a name in `ANALYSES`.
        settings: of the analysis.
        direction: the interval lies "above" or "below" `null`, or "within" `bounds`.
        null: the value between the claim and its contrary; None for that of no effect, 1 for ratios
            and 0 for all else.
        bounds: between which the number is claimed to lie, for "within".
        where: values of factors of the members that it speaks of; none for all.
        paper: what the paper says.
        confidence: of the interval.

    Raises:
        InputError: no such analysis, setting, direction or provenance; or bounds that do not fit
            the direction.
    """

    sentence: str
    analysis: str
    settings: Mapping[str, Any]
    direction: Direction
    null: float | None = None
    bounds: tuple[float, float] | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    paper: PaperValue | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.analysis not in ANALYSES:
            raise InputError(
                f"no analysis {self.analysis!r}; there are {', '.join(ANALYSES)}"
                f"{suggestion(self.analysis, ANALYSES)}"
            )
        signature = inspect.signature(ANALYSES[self.analysis]).parameters
        known = [name for name in signature if name not in ("population", "confidence")]
        for name in self.settings:
            if name not in known:
                raise InputError(
                    f"{self.analysis} has no setting {name!r}; there are {', '.join(known)}"
                    f"{suggestion(name, known)}"
                )
        for name in known:
            if signature[name].default is inspect.Parameter.empty and name not in self.settings:
                raise InputError(
                    f"{self.analysis} needs {name!r}: {self.sentence!r} does not say it"
                )
        _check_choice("direction", self.direction, Direction)
        if (self.direction == "within") != (self.bounds is not None):
            raise InputError(
                f"a claim has bounds where its direction is 'within', and only there: "
                f"{self.sentence!r}"
            )
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise InputError(f"bounds {self.bounds} are not in order")
        check_confidence(self.confidence)

    @property
    def boundary(self) -> float:
        """The value between the claim and its contrary."""
        if self.null is not None:
            return self.null
        ratio = self.analysis == "agreement" or bool(self.settings.get("ratio"))
        return 1.0 if ratio else 0.0


@dataclass(frozen=True)
class Verdict:
    """What a population says of a claim.

    Arguments:
        claim: which.
        outcome: "supported" where the interval lies on the claimed side, "contradicted" where it
            lies on the other, "undecided" where it lies across.
        result: of the analysis; None where the population has too few members for it.
        reason: why it is undecided, where that is not the interval.
    """

    claim: Claim
    outcome: Outcome
    result: Result | None
    reason: str = ""

    def __str__(self) -> str:
        found = self.reason if self.result is None else str(self.result)
        paper = f"; the paper: {self.claim.paper}" if self.claim.paper else ""
        return f"{self.outcome}: {self.claim.sentence} — {found}{paper}"


def judge(claim: Claim, population: Population) -> Verdict:
    """The verdict of a population on a claim, from the interval of its analysis alone.

    Raises:
        InputError: the population has no such column or factor.
    """
    try:
        members = population.where(**claim.where) if claim.where else population
        result = ANALYSES[claim.analysis](members, **claim.settings, confidence=claim.confidence)
    except TooFewError as error:
        return Verdict(claim, "undecided", None, str(error))
    return Verdict(claim, _outcome(claim, result), result)


def _outcome(claim: Claim, result: Result) -> Outcome:
    low, high = result.low, result.high
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if claim.bounds is not None:
        if claim.bounds[0] <= low and high <= claim.bounds[1]:
            return "supported"
        return "contradicted" if high < claim.bounds[0] or claim.bounds[1] < low else "undecided"
    above, below = low > claim.boundary, high < claim.boundary
    if not (above or below):
        return "undecided"
    return "supported" if above == (claim.direction == "above") else "contradicted"


def _check_choice(what: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    if value not in known:
        raise InputError(
            f"{what} {value!r} is none of {', '.join(known)}{suggestion(value, known)}"
        )
