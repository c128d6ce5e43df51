"""The optimisers of a study, each with its settings; see docs/training.md."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from planimeter.study.section import Number, Section, Switch, Whole

_Positive = Annotated[Number, Field(gt=0)]
_Decay = Annotated[Number, Field(ge=0)]
_Share = Annotated[Number, Field(ge=0, lt=1)]


class SGDSpec(Section):
    """Stochastic gradient descent, with momentum or without; weight decay is coupled."""

    added = frozenset({"nesterov", "weight_decay"})
    name: Literal["sgd"]
    lr: _Positive
    momentum: _Share = 0.0
    nesterov: Switch = False
    weight_decay: _Decay = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> SGDSpec:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class MomentumSpec(Section):
    """SGD with momentum, by default zhang2021's; weight decay is coupled."""

    name: Literal["momentum"]
    lr: _Positive = 0.01
    momentum: _Share = 0.9
    weight_decay: _Decay = 0.0


class NesterovSpec(Section):
    """SGD with Nesterov's momentum; weight decay is coupled."""

    name: Literal["nesterov"]
    lr: _Positive = 0.01
    momentum: Annotated[Number, Field(gt=0, lt=1)] = 0.9
    weight_decay: _Decay = 0.0


class GradientDescentSpec(Section):
    """Gradient descent on all rows at every step; `batch_size` does not count."""

    name: Literal["gradient_descent"]
    lr: _Positive
    momentum: _Share = 0.0
    weight_decay: _Decay = 0.0


class AdamSpec(Section):
    """Adam; weight decay is coupled."""

    added = frozenset({"betas", "eps", "amsgrad", "weight_decay"})
    name: Literal["adam"]
    lr: _Positive = 1e-3
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    amsgrad: Switch = False
    weight_decay: _Decay = 0.0


class AdamWSpec(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: _Positive = 1e-3
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    amsgrad: Switch = False
    weight_decay: _Decay = 0.01


class AdagradSpec(Section):
    """Adagrad, by default at zhang2021's rate; weight decay is coupled."""

    name: Literal["adagrad"]
    lr: _Positive = 0.01
    eps: _Decay = 1e-10
    weight_decay: _Decay = 0.0


class RMSpropSpec(Section):
    """RMSProp; weight decay is coupled."""

    name: Literal["rmsprop"]
    lr: _Positive = 1e-3
    alpha: _Share = 0.9
    eps: _Decay = 1e-8
    momentum: _Share = 0.0
    weight_decay: _Decay = 0.0


class PadamSpec(Section):
    """Padam; see `planimeter.training.Padam`."""

    name: Literal["padam"]
    lr: _Positive = 0.1
    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Decay = 1e-8
    partial: Annotated[Number, Field(ge=0, le=0.5)] = 0.125
    weight_decay: _Decay = 0.0
    decoupled: Switch = False


class SAMSpec(Section):
    """Sharpness-aware minimisation on SGD; see `planimeter.training.SAM`."""

    name: Literal["sam"]
    lr: _Positive
    rho: _Decay = 0.05
    momentum: _Share = 0.9
    weight_decay: _Decay = 0.0


class EntropySGDSpec(Section):
    """Entropy-SGD; see `planimeter.training.EntropySGD`."""

    name: Literal["entropy_sgd"]
    lr: _Positive = 1.0
    momentum: _Share = 0.9
    inner_lr: _Positive = 0.1
    inner_steps: Whole = Field(default=20, ge=1)
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
