"""A model, a loss and data as one function of the parameters, and its derivatives."""

from planimeter.landscape.landscape import LossLandscape, refuse_non_finite
from planimeter.landscape.modes import BATCH_NORM, evaluation_mode
from planimeter.landscape.recording import recorded
from planimeter.landscape.tracing import Trace, arguments, described, traced

__all__ = [
    "BATCH_NORM",
    "LossLandscape",
    "Trace",
    "arguments",
    "described",
    "evaluation_mode",
    "recorded",
    "refuse_non_finite",
    "traced",
]
