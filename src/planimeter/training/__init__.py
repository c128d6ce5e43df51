"""Training to zero error, and the optimisers that torch does not have."""

from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.fit import FitResult, fit_to_zero_error
from planimeter.training.optimisers import OPTIMISERS, make_optimiser

__all__ = ["OPTIMISERS", "EntropySGD", "FitResult", "fit_to_zero_error", "make_optimiser"]
