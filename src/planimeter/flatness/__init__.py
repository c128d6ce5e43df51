"""The flatness measures, one family a file, and their registry."""

from planimeter.flatness.adaptive import average_sharpness, worst_case_sharpness
from planimeter.flatness.by_layer import measure_layers
from planimeter.flatness.definition import Measure
from planimeter.flatness.keskar import KeskarSharpness, keskar_sharpness
from planimeter.flatness.measurements import LayerMeasurements, Measurements
from planimeter.flatness.of_ensemble import (
    keskar_sharpness_of_ensemble,
    rangamani_of_ensemble,
    top_eigenvalue_of_ensemble,
)
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
    "keskar_sharpness_of_ensemble",
    "measure",
    "measure_layers",
    "minimum_sharpness",
    "normalized_flat_minima",
    "rangamani",
    "rangamani_of_ensemble",
    "rangamani_trace",
    "relative_flatness",
    "relative_flatness_by_layer",
    "top_eigenvalue_of_ensemble",
    "worst_case_sharpness",
]
