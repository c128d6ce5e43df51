"""The training of a study: optimisers, stop rule, schedule, averaging and records, from YAML."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

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

_Positive = Annotated[float, Field(gt=0)]
_Decay = Annotated[float, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Epochs = tuple[Annotated[int, Field(ge=0)], ...]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    added: ClassVar[frozenset[str]] = frozenset()
    """Settings that studies once did not have, and that are left out where they are not used.

    A trial's key is a hash of its settings: those of old studies stay as they were.
    """

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in serialise(self).items()
            if name not in self.added or getattr(self, name) != fields[name].default
        }


class SGDSpec(_Spec):
    """Stochastic gradient descent, with momentum or without; weight decay is coupled."""

    added = frozenset({"nesterov", "weight_decay"})
    name: Literal["sgd"]
    lr: _Positive
    momentum: _Share = 0.0
    nesterov: bool = False
    weight_decay: _Decay = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> SGDSpec:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class MomentumSpec(_Spec):
    """SGD with momentum, by default zhang2021's; weight decay is coupled."""

    name: Literal["momentum"]
    lr: _Positive = 0.01
    momentum: _Share = 0.9
    weight_decay: _Decay = 0.0


class NesterovSpec(_Spec):
    """SGD with Nesterov's momentum; weight decay is coupled."""

    name: Literal["nesterov"]
    lr: _Positive = 0.01
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: _Decay = 0.0


class GradientDescentSpec(_Spec):
    """Gradient descent on all rows at every step; `batch_size` does not count."""

    name: Literal["gradient_descent"]
    lr: _Positive
    momentum: _Share = 0.0
    weight_decay: _Decay = 0.0


class AdamSpec(_Spec):
    """Adam; weight decay is coupled."""

    added = frozenset({"betas", "eps", "amsgrad", "weight_decay"})
    name: Literal["adam"]
    lr: _Positive = 1e-3
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    amsgrad: bool = False
    weight_decay: _Decay = 0.0


class AdamWSpec(_Spec):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: _Positive = 1e-3
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    amsgrad: bool = False
    weight_decay: _Decay = 0.01


class AdagradSpec(_Spec):
    """Adagrad, by default at zhang2021's rate; weight decay is coupled."""

    name: Literal["adagrad"]
    lr: _Positive = 0.01
    eps: _Decay = 1e-10
    weight_decay: _Decay = 0.0


class RMSpropSpec(_Spec):
    """RMSProp; weight decay is coupled."""

    name: Literal["rmsprop"]
    lr: _Positive = 1e-3
    alpha: _Share = 0.9
    eps: _Decay = 1e-8
    momentum: _Share = 0.0
    weight_decay: _Decay = 0.0


class PadamSpec(_Spec):
    """Padam; see `planimeter.training.Padam`."""

    name: Literal["padam"]
    lr: _Positive = 0.1
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    partial: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    weight_decay: _Decay = 0.0
    decoupled: bool = False


class SAMSpec(_Spec):
    """Sharpness-aware minimisation on SGD; see `planimeter.training.SAM`."""

    name: Literal["sam"]
    lr: _Positive
    rho: _Decay = 0.05
    momentum: _Share = 0.9
    weight_decay: _Decay = 0.0


class EntropySGDSpec(_Spec):
    """Entropy-SGD; see `planimeter.training.EntropySGD`."""

    name: Literal["entropy_sgd"]
    lr: _Positive = 1.0
    momentum: _Share = 0.9
    inner_lr: _Positive = 0.1
    inner_steps: int = Field(default=20, ge=1)
    averaging: _Share = 0.75
    thermal_noise: _Decay = 1e-4
    gamma: _Decay = 1e-4
    scoping: _Decay = 1e-3


OptimiserSpec = Annotated[
    SGDSpec
    | MomentumSpec
    | NesterovSpec
    | GradientDescentSpec
    | AdamSpec
    | AdamWSpec
    | AdagradSpec
    | RMSpropSpec
    | PadamSpec
    | SAMSpec
    | EntropySGDSpec,
    Field(discriminator="name"),
]


class ConstantSpec(_Spec):
    """The optimiser's learning rate throughout."""

    name: Literal["constant"] = "constant"

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return constant


class LinearSpec(_Spec):
    """granziol2020's: constant, then linear to `ratio`; `epochs` is by default `max_epochs`."""

    name: Literal["linear"]
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    epochs: Annotated[int, Field(ge=1)] | None = None

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return linear_decay(max_epochs if self.epochs is None else self.epochs, self.ratio)


class StepsSpec(_Spec):
    """rangamani2019's: times `factor` every so many epochs."""

    name: Literal["steps"]
    every: int = Field(default=30, ge=1)
    factor: float = Field(default=0.5, gt=0)

    def function(self, max_epochs: int) -> Schedule:
        """Epochs done to the factor of the rate."""
        return steps(self.every, self.factor)


ScheduleSpec = Annotated[ConstantSpec | LinearSpec | StepsSpec, Field(discriminator="name")]


class AveragingSpec(_Spec):
    """Average the weights of every so many epochs, from epoch `start` on."""

    start: int = Field(ge=1)
    every: int = Field(default=1, ge=1)


class TimetableSpec(_Spec):
    """Epochs, from the start or after the stop rule was met, or every so many."""

    epochs: _Epochs = ()
    after_stop: _Epochs = ()
    every: Annotated[int, Field(ge=1)] | None = None

    @property
    def timetable(self) -> Timetable:
        """The same for the training loop."""
        return Timetable(self.epochs, self.after_stop, self.every)


class RecordSpec(TimetableSpec):
    """Loss, errors, norm, and these measures, at some epochs; log P(f) too if asked."""

    measures: dict[str, dict[str, Any]] = {}
    log_prior: bool = False


class RescaleSpec(TimetableSpec):
    """alpha-scaling of a layer, named as in the model, at some epochs."""

    layer: str
    alpha: _Positive


class TrainingSpec(_Spec):
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
    batch_size: int = Field(default=32, ge=1)
    max_epochs: int = Field(default=5000, ge=1)
    stop: Literal["zero_error", "loss_below", "epochs"] = "zero_error"
    loss_below: _Positive | None = None
    overtrain: int = Field(default=0, ge=0)
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
