"""When training has reached its goal.

A rule looks at the number of epochs done and, if it needs to, at the network's errors and loss on
the training set S; it gives the reason for which training may stop, or None to go on.
"""

from __future__ import annotations

from collections.abc import Callable

from planimeter.errors import InputError
from planimeter.training.evaluation import Evaluation

StopRule = Callable[[int, Callable[[], Evaluation]], str | None]
"""Epochs done and a way to evaluate S, to the reason to stop, or None."""


def zero_error(epoch: int, on_train: Callable[[], Evaluation]) -> str | None:
    """The first epoch at which every row of S is right.

    Source: zhang2021, Section 5.2.
    """
    return "zero error on the training set" if on_train().errors == 0 else None


def loss_below(value: float) -> StopRule:
    """The first epoch at which the mean loss over S, in evaluation mode, is below `value`.

    Raises:
        InputError: `value` is not positive.
    """
    if not value > 0:
        raise InputError(f"the loss to reach must be positive, got {value}")

    def rule(epoch: int, on_train: Callable[[], Evaluation]) -> str | None:
        loss = on_train().loss
        return f"training loss {loss:.4g}, below {value:g}" if loss < value else None

    return rule


def after_epochs(count: int) -> StopRule:
    """After a number of epochs, whatever the network does; nothing is evaluated on the way.

    Raises:
        InputError: `count` is below 1.
    """
    if count < 1:
        raise InputError(f"training needs at least 1 epoch, got {count}")
    return lambda epoch, on_train: f"{count} epochs" if epoch >= count else None
