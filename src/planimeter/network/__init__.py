"""How a module is run and read: modes, inputs and outputs, graphs of its operations."""

from planimeter.network.modes import BATCH_NORM, evaluation_mode
from planimeter.network.recorded_graph import recorded
from planimeter.network.tracing import Trace, arguments, described, traced

__all__ = [
    "BATCH_NORM",
    "Trace",
    "arguments",
    "described",
    "evaluation_mode",
    "recorded",
    "traced",
]
