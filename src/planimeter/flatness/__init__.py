"""The flatness measures, one family a file, and their registry."""

from planimeter.flatness.definition import Measure
from planimeter.flatness.keskar import KeskarSharpness, keskar_sharpness
from planimeter.flatness.registry import MEASURES, measure

__all__ = ["MEASURES", "KeskarSharpness", "Measure", "keskar_sharpness", "measure"]
