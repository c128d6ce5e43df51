"""What a population of networks says: correlations, contrasts, trends, and verdicts on claims."""

from planimeter.analysis.claim import ANALYSES, Claim, PaperValue, Verdict, judge
from planimeter.analysis.conditions import Contrast, contrast
from planimeter.analysis.correlation import (
    Correlation,
    correlate,
    correlation_table,
    correlations,
)
from planimeter.analysis.difference import correlation_difference
from planimeter.analysis.granulated import GranulatedTau, SignError, granulated_tau, sign_error
from planimeter.analysis.limits_of_agreement import Agreement, agreement
from planimeter.analysis.mutual_information import (
    ConditionalInformation,
    conditional_mutual_information,
)
from planimeter.analysis.partial import partial_correlation
from planimeter.analysis.population import Column, Population
from planimeter.analysis.result import Result, TooFewError, simultaneous
from planimeter.analysis.share import share_above
from planimeter.analysis.slopes import Trend, trend

__all__ = [
    "ANALYSES",
    "Agreement",
    "Claim",
    "Column",
    "ConditionalInformation",
    "Contrast",
    "Correlation",
    "GranulatedTau",
    "PaperValue",
    "Population",
    "Result",
    "SignError",
    "TooFewError",
    "Trend",
    "Verdict",
    "agreement",
    "conditional_mutual_information",
    "contrast",
    "correlate",
    "correlation_difference",
    "correlation_table",
    "correlations",
    "granulated_tau",
    "judge",
    "partial_correlation",
    "share_above",
    "sign_error",
    "simultaneous",
    "trend",
]
