"""The Bayesian prior of a function, log P(f): kernels and orthant probabilities."""

from planimeter.prior.kernels import check_kernel_exists, fully_connected_kernel, nngp_kernel
from planimeter.prior.log_prior import LogProbability, log_prior

__all__ = [
    "LogProbability",
    "check_kernel_exists",
    "fully_connected_kernel",
    "log_prior",
    "nngp_kernel",
]
