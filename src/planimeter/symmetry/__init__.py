"""Changes of the parameters that leave the function as it is: positive rescalings."""

from planimeter.symmetry.finding import find_rescalings
from planimeter.symmetry.rescalings import Rescaling, Rescalings, Scaling
from planimeter.symmetry.transformed import alpha_scaling, rescaled

__all__ = [
    "Rescaling",
    "Rescalings",
    "Scaling",
    "alpha_scaling",
    "find_rescalings",
    "rescaled",
]
