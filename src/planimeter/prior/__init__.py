"""The Bayesian prior of a function, log P(f): kernels, orthant probabilities and sampling."""

from planimeter.prior.bounds import ErrorBound, function_error_bound, posterior_error_bound
from planimeter.prior.kernels.empirical import EmpiricalKernel, empirical_kernel
from planimeter.prior.kernels.initialisation import gaussian_initialisation
from planimeter.prior.kernels.nngp import check_kernel_exists, fully_connected_kernel, nngp_kernel
from planimeter.prior.orthant.empirical_log_prior import (
    EmpiricalLogProbability,
    empirical_log_prior,
)
from planimeter.prior.orthant.log_posterior import LogPosterior, log_evidence, log_posterior
from planimeter.prior.orthant.log_prior import log_prior, log_priors, minimax_tilting
from planimeter.prior.orthant.log_probability import LogProbability
from planimeter.prior.orthant.minimax_tilting import MinimaxResult
from planimeter.prior.sampling.boolean import boolean_inputs, lempel_ziv_complexity
from planimeter.prior.sampling.function_counts import FunctionCounts
from planimeter.prior.sampling.function_sampling import sample_functions

__all__ = [
    "EmpiricalKernel",
    "EmpiricalLogProbability",
    "ErrorBound",
    "FunctionCounts",
    "LogPosterior",
    "LogProbability",
    "MinimaxResult",
    "boolean_inputs",
    "check_kernel_exists",
    "empirical_kernel",
    "empirical_log_prior",
    "fully_connected_kernel",
    "function_error_bound",
    "gaussian_initialisation",
    "lempel_ziv_complexity",
    "log_evidence",
    "log_posterior",
    "log_prior",
    "log_priors",
    "minimax_tilting",
    "nngp_kernel",
    "posterior_error_bound",
    "sample_functions",
]
