"""Matrix-free symmetric matrices: what a product with a vector is, for each kind of curvature."""

from planimeter.operators.operator import CurvatureOperator

__all__ = ["CurvatureOperator"]
