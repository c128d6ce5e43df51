"""Pictures of the landscape: the loss along directions, and measures along a rescaling."""

from planimeter.slices.directions import Direction, eigenvector_directions, random_direction
from planimeter.slices.grid import QuadraticModel, Slice, slice_1d, slice_2d
from planimeter.slices.path import SharpnessPath, sharpness_path

__all__ = [
    "Direction",
    "QuadraticModel",
    "SharpnessPath",
    "Slice",
    "eigenvector_directions",
    "random_direction",
    "sharpness_path",
    "slice_1d",
    "slice_2d",
]
