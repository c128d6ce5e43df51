"""Many networks of one architecture as one computation: their training, their sharpness."""

from planimeter.ensembles.fit import fit_ensemble
from planimeter.ensembles.flatness import (
    keskar_sharpness_of_ensemble,
    rangamani_of_ensemble,
    top_eigenvalue_of_ensemble,
)
from planimeter.ensembles.optimisers import stackable

__all__ = [
    "fit_ensemble",
    "keskar_sharpness_of_ensemble",
    "rangamani_of_ensemble",
    "stackable",
    "top_eigenvalue_of_ensemble",
]
