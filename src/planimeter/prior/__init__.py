"""The Bayesian prior of a function, log P(f): kernels and orthant probabilities."""

from planimeter.prior.kernels import fully_connected_kernel, hidden_layers, nngp_kernel
from planimeter.prior.log_prior import LogProbability, log_prior

__all__ = ["LogProbability", "fully_connected_kernel", "hidden_layers", "log_prior", "nngp_kernel"]
