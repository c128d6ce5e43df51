"""Changes of the parameters that leave the function as it is, and the audit by them."""

from planimeter.symmetry.finding import find_rescalings
from planimeter.symmetry.invariance import Audit, Change, audit
from planimeter.symmetry.rescalings import Rescaling, Rescalings, Scaling
from planimeter.symmetry.transformed import alpha_scaling, rescaled

__all__ = [
    "Audit",
    "Change",
    "Rescaling",
    "Rescalings",
    "Scaling",
    "alpha_scaling",
    "audit",
    "find_rescalings",
    "rescaled",
]
