"""planimeter: how flat and how probable a trained network is, and which of the two matters.

Everything here needs torch, NumPy, SciPy and jaxtyping alone. Data sets, training, studies and
reports are in the subpackages of those names.
"""

from planimeter.curvature import Eigenpairs, frobenius_norm, top_eigenvalues, trace
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness import MEASURES, KeskarSharpness, Measure, keskar_sharpness, measure
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.operators import CurvatureOperator
from planimeter.prior import LogProbability, fully_connected_kernel, log_prior, nngp_kernel

__version__ = "0.1.0"

__all__ = [
    "MEASURES",
    "CurvatureOperator",
    "Eigenpairs",
    "Estimate",
    "InputError",
    "KeskarSharpness",
    "LogProbability",
    "LossLandscape",
    "Measure",
    "binary_cross_entropy",
    "frobenius_norm",
    "fully_connected_kernel",
    "keskar_sharpness",
    "log_prior",
    "measure",
    "nngp_kernel",
    "top_eigenvalues",
    "trace",
]
