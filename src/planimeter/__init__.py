"""planimeter: how flat and how probable a trained network is, and which of the two matters.

Everything here needs torch, NumPy, SciPy and jaxtyping alone. Data sets, training, studies and
reports are in the subpackages of those names.
"""

from planimeter.curvature import (
    Eigenpairs,
    GramSpectrum,
    SpectralDensity,
    SpectralSummary,
    diagonal,
    frobenius_norm,
    gauss_newton_rank_bound,
    gauss_newton_spectrum,
    gauss_newton_trace,
    hessian_rank_bound,
    log_product,
    piecewise_linear_trace,
    published_rank_bound,
    spectral_density,
    spectral_summary,
    top_eigenvalues,
    trace,
)
from planimeter.errors import InputError, MeasurementWarning
from planimeter.estimate import Estimate
from planimeter.flatness import (
    MEASURES,
    KeskarSharpness,
    Measure,
    keskar_sharpness,
    measure,
    measure_layers,
)
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.operators import CurvatureOperator
from planimeter.prior import (
    ErrorBound,
    LogPosterior,
    LogProbability,
    fully_connected_kernel,
    function_error_bound,
    log_evidence,
    log_posterior,
    log_prior,
    log_priors,
    minimax_tilting,
    nngp_kernel,
    posterior_error_bound,
)
from planimeter.slices import (
    Direction,
    SharpnessPath,
    Slice,
    eigenvector_directions,
    random_direction,
    sharpness_path,
    slice_1d,
    slice_2d,
)
from planimeter.symmetry import Audit, Rescalings, audit, find_rescalings

__version__ = "0.1.0"

__all__ = [
    "MEASURES",
    "Audit",
    "CurvatureOperator",
    "Direction",
    "Eigenpairs",
    "ErrorBound",
    "Estimate",
    "GramSpectrum",
    "InputError",
    "KeskarSharpness",
    "LogPosterior",
    "LogProbability",
    "LossLandscape",
    "Measure",
    "MeasurementWarning",
    "Rescalings",
    "SharpnessPath",
    "Slice",
    "SpectralDensity",
    "SpectralSummary",
    "audit",
    "binary_cross_entropy",
    "diagonal",
    "eigenvector_directions",
    "find_rescalings",
    "frobenius_norm",
    "fully_connected_kernel",
    "function_error_bound",
    "gauss_newton_rank_bound",
    "gauss_newton_spectrum",
    "gauss_newton_trace",
    "hessian_rank_bound",
    "keskar_sharpness",
    "log_evidence",
    "log_posterior",
    "log_prior",
    "log_priors",
    "log_product",
    "measure",
    "measure_layers",
    "minimax_tilting",
    "nngp_kernel",
    "piecewise_linear_trace",
    "posterior_error_bound",
    "published_rank_bound",
    "random_direction",
    "sharpness_path",
    "slice_1d",
    "slice_2d",
    "spectral_density",
    "spectral_summary",
    "top_eigenvalues",
    "trace",
]
