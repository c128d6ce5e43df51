"""What is computed from a symmetric matrix-free operator, and the exact Gauss-Newton spectrum."""

from planimeter.curvature.density import SpectralDensity, spectral_density
from planimeter.curvature.exact_trace import gauss_newton_trace, piecewise_linear_trace
from planimeter.curvature.gram import GramSpectrum, gauss_newton_spectrum
from planimeter.curvature.krylov import Eigenpairs, top_eigenvalues
from planimeter.curvature.rank_bound import (
    RankBound,
    gauss_newton_rank_bound,
    hessian_rank_bound,
    published_rank_bound,
)
from planimeter.curvature.summary import SpectralSummary, log_product, spectral_summary
from planimeter.curvature.traces import (
    DiagonalEstimate,
    diagonal,
    frobenius_norm,
    trace,
    trace_and_frobenius_norm,
)

__all__ = [
    "DiagonalEstimate",
    "Eigenpairs",
    "GramSpectrum",
    "RankBound",
    "SpectralDensity",
    "SpectralSummary",
    "diagonal",
    "frobenius_norm",
    "gauss_newton_rank_bound",
    "gauss_newton_spectrum",
    "gauss_newton_trace",
    "hessian_rank_bound",
    "log_product",
    "piecewise_linear_trace",
    "published_rank_bound",
    "spectral_density",
    "spectral_summary",
    "top_eigenvalues",
    "trace",
    "trace_and_frobenius_norm",
]
