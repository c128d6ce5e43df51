"""The Bayesian prior of a function, log P(f): kernels, orthant probabilities and sampling."""

from planimeter.prior.boolean import boolean_inputs, lempel_ziv_complexity
from planimeter.prior.empirical_kernel import EmpiricalKernel, empirical_kernel
from planimeter.prior.empirical_log_prior import EmpiricalLogProbability, empirical_log_prior
from planimeter.prior.function_counts import FunctionCounts
from planimeter.prior.function_sampling import sample_functions
from planimeter.prior.initialisation import gaussian_initialisation
from planimeter.prior.kernels import fully_connected_kernel, hidden_layers, nngp_kernel
from planimeter.prior.log_prior import LogProbability, log_prior

__all__ = [
    "EmpiricalKernel",
    "EmpiricalLogProbability",
    "FunctionCounts",
    "LogProbability",
    "boolean_inputs",
    "empirical_kernel",
    "empirical_log_prior",
    "fully_connected_kernel",
    "gaussian_initialisation",
    "hidden_layers",
    "lempel_ziv_complexity",
    "log_prior",
    "nngp_kernel",
    "sample_functions",
]
