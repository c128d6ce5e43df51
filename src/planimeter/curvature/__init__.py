"""What is computed from a symmetric matrix-free operator: extreme eigenvalues, trace, norms."""

from planimeter.curvature.krylov import Eigenpairs, top_eigenvalues
from planimeter.curvature.trace import frobenius_norm, trace

__all__ = ["Eigenpairs", "frobenius_norm", "top_eigenvalues", "trace"]
