"""planimeter: how flat and how probable a trained network is, and which of the two matters.

The families are modules: `curvature`, `flatness`, `prior`, `symmetry` and `slices` need torch,
NumPy, SciPy and jaxtyping alone; `analysis`, `training`, `ensembles`, `data`, `models`, `study` and
`report` are imported when they are first used. What is used most stands here.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from planimeter import curvature, flatness, prior, slices, symmetry
from planimeter.curvature import spectral_summary, top_eigenvalues, trace
from planimeter.errors import InputError, MeasurementWarning
from planimeter.estimate import Estimate
from planimeter.flatness import MEASURES, measure, measure_layers
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.operator import CurvatureOperator
from planimeter.prior import empirical_kernel, log_prior, nngp_kernel, sample_functions
from planimeter.slices import slice_1d, slice_2d
from planimeter.symmetry import audit, find_rescalings

__version__ = "0.1.0"

__all__ = [
    "MEASURES",
    "CurvatureOperator",
    "Estimate",
    "InputError",
    "LossLandscape",
    "MeasurementWarning",
    "audit",
    "binary_cross_entropy",
    "curvature",
    "empirical_kernel",
    "find_rescalings",
    "flatness",
    "log_prior",
    "measure",
    "measure_layers",
    "nngp_kernel",
    "prior",
    "sample_functions",
    "slice_1d",
    "slice_2d",
    "slices",
    "spectral_summary",
    "symmetry",
    "top_eigenvalues",
    "trace",
]

_FAMILIES = (curvature, flatness, prior, slices, symmetry)
_ON_USE = ("analysis", "data", "ensembles", "models", "report", "study", "training")


def __getattr__(name: str) -> Any:
    """Families that are imported on use, and for one version the names that stood here before."""
    if name in _ON_USE:
        return importlib.import_module(f"planimeter.{name}")
    for family in _FAMILIES:
        if name in family.__all__:
            warnings.warn(
                f"planimeter.{name} is now {family.__name__}.{name}; the old name goes with "
                f"version 0.2",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(family, name)
    raise AttributeError(f"module 'planimeter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_USE})
