"""A model, a loss and data as one function of the parameters, and its derivatives."""

from planimeter.landscape.landscape import LossLandscape, refuse_non_finite

__all__ = [
    "LossLandscape",
    "refuse_non_finite",
]
