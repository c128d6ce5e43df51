"""Training to zero error, of one network or of many at once, and optimisers torch does not have."""

from planimeter.training.ensemble import fit_ensemble
from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.fit import FitResult, fit_to_zero_error
from planimeter.training.member_optimisers import stackable
from planimeter.training.optimisers import OPTIMISERS, make_optimiser

__all__ = [
    "OPTIMISERS",
    "EntropySGD",
    "FitResult",
    "fit_ensemble",
    "fit_to_zero_error",
    "make_optimiser",
    "stackable",
]
