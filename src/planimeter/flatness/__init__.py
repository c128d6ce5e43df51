"""The flatness measures, one family a file, and their registry."""

from planimeter.flatness.adaptive import average_sharpness, worst_case_sharpness
from planimeter.flatness.box_sharpness import KeskarSharpness, keskar_sharpness
from planimeter.flatness.by_layer import measure_layers
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.measurements import LayerMeasurements, Measurements
from planimeter.flatness.over_rescalings import minimum_sharpness, normalized_flat_minima
from planimeter.flatness.registry import MEASURES, all_names, measure
from planimeter.flatness.relative import relative_flatness, relative_flatness_by_layer
from planimeter.flatness.riemannian import rangamani, rangamani_trace

__all__ = [
    "MEASURES",
    "KeskarSharpness",
    "LayerMeasurements",
    "Measure",
    "Measurements",
    "all_names",
    "average_sharpness",
    "keskar_sharpness",
    "measure",
    "measure_layers",
    "minimum_sharpness",
    "normalized_flat_minima",
    "rangamani",
    "rangamani_trace",
    "relative_flatness",
    "relative_flatness_by_layer",
    "worst_case_sharpness",
]
