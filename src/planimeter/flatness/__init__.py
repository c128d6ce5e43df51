"""The flatness measures, one family a file, and their registry."""

from planimeter.flatness.keskar import KeskarSharpness, keskar_sharpness
from planimeter.flatness.registry import MEASURES, Measure, measure

__all__ = ["MEASURES", "KeskarSharpness", "Measure", "keskar_sharpness", "measure"]
