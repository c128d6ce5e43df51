"""The flatness measures, one family a file, their registry, and pictures of the landscape."""

from planimeter.flatness.definition import Measure
from planimeter.flatness.directions import Direction, eigenvector_directions, random_direction
from planimeter.flatness.keskar import KeskarSharpness, keskar_sharpness
from planimeter.flatness.registry import MEASURES, measure
from planimeter.flatness.sharpness_path import SharpnessPath, sharpness_path
from planimeter.flatness.slices import QuadraticModel, Slice, slice_1d, slice_2d

__all__ = [
    "MEASURES",
    "Direction",
    "KeskarSharpness",
    "Measure",
    "QuadraticModel",
    "SharpnessPath",
    "Slice",
    "eigenvector_directions",
    "keskar_sharpness",
    "measure",
    "random_direction",
    "sharpness_path",
    "slice_1d",
    "slice_2d",
]
