"""The Bayesian prior of a function, log P(f): kernels and orthant probabilities."""

from planimeter.prior.kernels import fully_connected_kernel, hidden_layers, nngp_kernel
from planimeter.prior.log_prior import log_prior, log_priors
from planimeter.prior.log_probability import LogProbability

__all__ = [
    "LogProbability",
    "fully_connected_kernel",
    "hidden_layers",
    "log_prior",
    "log_priors",
    "nngp_kernel",
]
