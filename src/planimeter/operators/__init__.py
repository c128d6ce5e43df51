"""Matrix-free symmetric matrices: what a product with a vector is, for each kind of curvature."""

from planimeter.operators.operator import CurvatureOperator, check_operator

__all__ = ["CurvatureOperator", "check_operator"]
