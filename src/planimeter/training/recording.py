"""What is measured, and what is changed, at chosen epochs of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.flatness import measure
from planimeter.flatness.registry import check_settings
from planimeter.landscape import LossLandscape
from planimeter.symmetry import alpha_scaling


@dataclass(frozen=True)
class Timetable:
    """Epochs at which something happens; nothing is ever due in an empty one.

    Arguments:
        epochs: counted from the start; 0 is before the first step.
        after_stop: counted from the epoch at which the stop rule was met; 0 is that epoch.
        every: also every so many epochs.

    Raises:
        InputError: a number is negative.
    """

    epochs: tuple[int, ...] = ()
    after_stop: tuple[int, ...] = ()
    every: int | None = None

    def __post_init__(self) -> None:
        if min((*self.epochs, *self.after_stop, 0)) < 0 or (
            self.every is not None and self.every < 1
        ):
            raise InputError(f"epochs cannot be negative, nor `every` below 1: {self}")

    def due(self, previous: int, epoch: int, stop_epoch: int | None) -> bool:
        """Whether one of the epochs after `previous`, up to `epoch`, is in the timetable."""
        points = list(self.epochs)
        if stop_epoch is not None:
            points += [stop_epoch + later for later in self.after_stop]
        if self.every is not None and epoch // self.every > previous // self.every:
            return True
        return any(previous < point <= epoch for point in points)


Hook = Callable[[nn.Module], Mapping[str, Any]]
"""A network to named plain values (what JSON can hold); it must leave the network as it is."""


@dataclass(frozen=True)
class Recording:
    """What is written down when: loss, errors and the norm of theta, and what the hooks say."""

    at: Timetable
    hooks: tuple[Hook, ...] = ()


@dataclass(frozen=True)
class Intervention:
    """A change of the network at some epochs, made before what is recorded there.

    Where weights are averaged it is the iterate that is changed, not the average.
    """

    at: Timetable
    change: Callable[[nn.Module], None]


@dataclass(frozen=True)
class Record:
    """Values of a network at one epoch.

    Arguments:
        epoch: passes over the training data.
        after_stop: epochs since the stop rule was met; None before.
        values: `loss` (mean over S), `train_errors`, `attack_errors`, `test_errors` (rows; those of
            sets that were not given are missing), `theta_norm`, and what the hooks gave.
    """

    epoch: int
    after_stop: int | None
    values: dict[str, Any] = field(default_factory=dict)


def measuring(
    measures: Mapping[str, Mapping[str, Any]],
    landscape_of: Callable[[nn.Module], LossLandscape],
) -> Hook:
    """A hook that takes flatness measures: each an `Estimate` as plain values, without its time.

    Arguments:
        measures: names in `planimeter.flatness.MEASURES`, each with its settings.
        landscape_of: a network to the landscape to measure.

    Raises:
        InputError: a name or a setting is unknown.
    """
    check_settings(measures)
    settings = {name: dict(own) for name, own in measures.items()}

    def hook(model: nn.Module) -> dict[str, Any]:
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            return {}
        found = measure(landscape_of(model), settings, settings=settings)
        plain = {name: estimate.as_dict() for name, estimate in found.items()}
        return {name: {k: v for k, v in e.items() if k != "seconds"} for name, e in plain.items()}

    return hook


def alpha_scale(
    layer: str, alpha: float, landscape_of: Callable[[nn.Module], LossLandscape]
) -> Callable[[nn.Module], None]:
    """A change for an `Intervention`: the alpha-scaling of a layer, in place.

    The function stays the same, the parameters do not; the optimiser's state is left alone, as if
    it had not been told.

    Source: zhang2021, Eq. 1 and Figure 5 (the first layer by 1/5.9, 500 epochs after zero error).
    """

    def change(model: nn.Module) -> None:
        state = alpha_scaling(landscape_of(model), layer, alpha).state
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(state[name])

    return change
