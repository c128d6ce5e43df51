"""The Bayesian prior of a function, log P(f): kernels and orthant probabilities."""

from planimeter.prior.bounds import ErrorBound, function_error_bound, posterior_error_bound
from planimeter.prior.kernels import fully_connected_kernel, hidden_layers, nngp_kernel
from planimeter.prior.log_posterior import LogPosterior, log_evidence, log_posterior
from planimeter.prior.log_prior import log_prior, log_priors, minimax_tilting
from planimeter.prior.log_probability import LogProbability

__all__ = [
    "ErrorBound",
    "LogPosterior",
    "LogProbability",
    "fully_connected_kernel",
    "function_error_bound",
    "hidden_layers",
    "log_evidence",
    "log_posterior",
    "log_prior",
    "log_priors",
    "minimax_tilting",
    "nngp_kernel",
    "posterior_error_bound",
]
