"""Training of one network or many: optimisers, schedules, averaging, stopping, recording."""

from planimeter.training.averaging import Averaging
from planimeter.training.batch_norm import recompute_batch_norm
from planimeter.training.checkpoints import (
    Checkpoints,
    latest_checkpoint,
    load_checkpoint,
    save_weights,
)
from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.evaluation import Evaluation, evaluate, function_on
from planimeter.training.fitting import FitResult, fit, fit_to_zero_error
from planimeter.training.optimisers import (
    FULL_BATCH,
    OPTIMISERS,
    Optimiser,
    make_optimiser,
    optimiser_label,
)
from planimeter.training.padam import Padam
from planimeter.training.recording import (
    Hook,
    Intervention,
    Record,
    Recording,
    Timetable,
    alpha_scale,
    measuring,
)
from planimeter.training.sam import SAM
from planimeter.training.schedules import Schedule, constant, linear_decay, steps
from planimeter.training.stopping import StopRule, after_epochs, loss_below, zero_error
from planimeter.training.stream import BatchSource, shuffled

__all__ = [
    "FULL_BATCH",
    "OPTIMISERS",
    "SAM",
    "Averaging",
    "BatchSource",
    "Checkpoints",
    "EntropySGD",
    "Evaluation",
    "FitResult",
    "Hook",
    "Intervention",
    "Optimiser",
    "Padam",
    "Record",
    "Recording",
    "Schedule",
    "StopRule",
    "Timetable",
    "after_epochs",
    "alpha_scale",
    "constant",
    "evaluate",
    "fit",
    "fit_to_zero_error",
    "function_on",
    "latest_checkpoint",
    "linear_decay",
    "load_checkpoint",
    "loss_below",
    "make_optimiser",
    "measuring",
    "optimiser_label",
    "recompute_batch_norm",
    "save_weights",
    "shuffled",
    "steps",
    "zero_error",
]
