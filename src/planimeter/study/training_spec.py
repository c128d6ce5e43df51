"""The training of a study: stop rule, schedule, averaging, records and checkpoints, from YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from planimeter.flatness.registry import check_settings
from planimeter.study.section import Number, Section, Switch, Whole
from planimeter.training import (
    Averaging,
    Schedule,
    StopRule,
    Timetable,
    after_epochs,
    constant,
    linear_decay,
    loss_below,
    steps,
    zero_error,
)

_Positive = Annotated[Number, Field(gt=0)]
_Epochs = tuple[Annotated[Whole, Field(ge=0)], ...]


class ConstantSpec(Section):
    """The optimiser's learning rate throughout."""

    name: Literal["constant"] = "constant"

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return constant


class LinearSpec(Section):
    """granziol2020's: constant, then linear to `ratio`; `epochs` is by default `max_epochs`."""

    name: Literal["linear"]
    ratio: Annotated[Number, Field(ge=0, le=1)] = 0.01
    epochs: Annotated[Whole, Field(ge=1)] | None = None

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return linear_decay(max_epochs if self.epochs is None else self.epochs, self.ratio)


class StepsSpec(Section):
    """rangamani2019's: times `factor` every so many epochs."""

    name: Literal["steps"]
    every: Whole = Field(default=30, ge=1)
    factor: Number = Field(default=0.5, gt=0)

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return steps(self.every, self.factor)


ScheduleSpec = Annotated[ConstantSpec | LinearSpec | StepsSpec, Field(discriminator="name")]


class AveragingSpec(Section):
    """Average the weights of every so many epochs, from epoch `start` on."""

    start: Whole = Field(ge=1)
    every: Whole = Field(default=1, ge=1)


class TimetableSpec(Section):
    """Epochs, from the start or after the stop rule was met, or every so many."""

    epochs: _Epochs = ()
    after_stop: _Epochs = ()
    every: Annotated[Whole, Field(ge=1)] | None = None

    @property
    def timetable(self) -> Timetable:
        """The same for the training loop."""
        return Timetable(self.epochs, self.after_stop, self.every)


class RecordSpec(TimetableSpec):
    """Loss, errors, norm, and these measures, at some epochs; log P(f) too if asked."""

    measures: dict[str, dict[str, Any]] = Field(default_factory=dict)
    log_prior: Switch = False

    @field_validator("measures")
    @classmethod
    def _known(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        check_settings(given)
        return given


class RescaleSpec(TimetableSpec):
    """alpha-scaling of a layer, named as in the model, at some epochs."""

    layer: str
    alpha: _Positive


class TrainingSpec(Section):
    """When training stops, how long it goes on, and what happens on the way.

    `stop` is "zero_error" (S all right), "loss_below" (then `loss_below` is the value) or "epochs"
    (all of `max_epochs`).
    """

    added = frozenset(
        {
            "stop",
            "loss_below",
            "overtrain",
            "augmentation",
            "schedule",
            "averaging",
            "record",
            "rescale",
            "checkpoints",
        }
    )
    batch_size: Whole = Field(default=32, ge=1)
    max_epochs: Whole = Field(default=5000, ge=1)
    stop: Literal["zero_error", "loss_below", "epochs"] = "zero_error"
    loss_below: _Positive | None = None
    overtrain: Whole = Field(default=0, ge=0)
    augmentation: Literal["none", "flip_crop"] = "none"
    schedule: ScheduleSpec = ConstantSpec()
    averaging: AveragingSpec | None = None
    record: RecordSpec | None = None
    rescale: RescaleSpec | None = None
    checkpoints: TimetableSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSpec:
        if (self.stop == "loss_below") != (self.loss_below is not None):
            raise ValueError("`stop: loss_below` and a value for `loss_below` belong together")
        longest = self.max_epochs + self.overtrain
        if self.averaging is not None and self.averaging.start > longest:
            raise ValueError(
                f"averaging starts at epoch {self.averaging.start}, training ends at {longest}"
            )
        if self.rescale is not None:
            late = [e for e in self.rescale.after_stop if e > self.overtrain]
            late += [e for e in self.rescale.epochs if e > longest]
            if late:
                raise ValueError(
                    f"rescale at epoch {late[0]} never comes: training goes on for "
                    f"{self.overtrain} epochs after its stop (`overtrain`), for {longest} in all"
                )
        return self

    @property
    def rule(self) -> StopRule:
        """The stop rule."""
        if self.stop == "zero_error":
            return zero_error
        if self.loss_below is not None:
            return loss_below(self.loss_below)
        return after_epochs(self.max_epochs)

    @property
    def average(self) -> Averaging | None:
        """Which weights are averaged."""
        return None if self.averaging is None else Averaging(**self.averaging.model_dump())
