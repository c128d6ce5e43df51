"""One optimiser for stacked networks, each with settings of its own.

An optimiser that treats every number of a parameter alike (SGD, Adam and their kind) needs not know
that the first dimension of its parameters counts networks. Networks with the same settings are a
parameter group: slices of the stacked tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from planimeter.errors import InputError
from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.optimisers import make_optimiser

Settings = dict[str, Any]

_ELEMENTWISE = (SGD, Adam, AdamW, Adagrad, RMSprop, Adadelta, Adamax, NAdam, RAdam, EntropySGD)
_FUSED = (SGD, Adam, AdamW)
_FUSED_ON_CPU = (Adagrad,)


def stackable(optimiser: Optimizer) -> bool:
    """Whether an optimiser treats every number of its parameters alike, whatever the others are.

    A class says so of itself by `elementwise = True`.
    """
    return type(optimiser) in _ELEMENTWISE or bool(getattr(optimiser, "elementwise", False))


class MemberOptimiser:
    """An optimiser over stacked parameters.

    Arguments:
        name: of `OPTIMISERS`, or something that makes an optimiser, such as a class of torch.
        settings: of every network; networks with the same settings stand together.
        noise_seeds: of every network, for an optimiser that draws random numbers.
        parameters, gradients: one pair of tensors a parameter, networks first.

    Raises:
        InputError: the name or a setting is unknown, or the optimiser mixes the networks.
    """

    def __init__(
        self,
        name: str | Callable[..., Optimizer],
        settings: Sequence[Settings],
        noise_seeds: Sequence[int],
        parameters: list[Tensor],
        gradients: list[Tensor],
    ) -> None:
        self.counts = [len(list(same)) for _, same in groupby(settings)]
        parts: list[Optimizer] = []
        start = 0
        for count in self.counts:
            part = slice(start, start + count)
            slices = _slices(parameters, gradients, part)
            parts.append(_make(name, slices, settings[start], noise_seeds[part]))
            start += count
        self.optimiser = parts[0]
        for other in parts[1:]:
            self.optimiser.param_groups += other.param_groups
            self.optimiser.state.update(other.state)
        if len({group.get("inner_steps") for group in self.optimiser.param_groups}) > 1:
            raise InputError(
                "the networks of an ensemble take the same number of inner_steps: train those with "
                "another number in an ensemble of their own"
            )

    def step(self, closure: Callable[[], Any]) -> None:
        """One step of every network."""
        self.optimiser.step(closure)

    def keep(self, kept: Sequence[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Go on with some of the networks, whose tensors are now these."""
        state: Any = defaultdict(dict)
        old_start, start, counts, groups = 0, 0, [], []
        for group, count in zip(self.optimiser.param_groups, self.counts, strict=True):
            own = [k - old_start for k in kept if old_start <= k < old_start + count]
            old_start += count
            if not own:
                continue
            slices = _slices(parameters, gradients, slice(start, start + len(own)))
            for old, new in zip(group["params"], slices, strict=True):
                for key, value in self.optimiser.state.get(old, {}).items():
                    whole = isinstance(value, Tensor) and value.shape == old.shape
                    state[new][key] = value[own] if whole else value
            group["params"] = slices
            if "generators" in group:
                group["generators"] = [group["generators"][k] for k in own]
            groups.append(group)
            counts.append(len(own))
            start += len(own)
        self.optimiser.param_groups[:] = groups
        self.optimiser.state = state
        self.counts = counts


class _StackedEntropySGD(EntropySGD):
    """Entropy-SGD whose noise is what every network would draw alone."""

    def __init__(self, params: list[Tensor], *, seeds: Sequence[int], **settings: Any) -> None:
        super().__init__(params, **settings)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.param_groups[0]["generators"] = generators

    def _noise(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        return [
            torch.stack(
                [torch.randn(p.shape[1:], generator=g, dtype=p.dtype) for g in group["generators"]]
            ).to(p.device)
            for p in params
        ]


def _make(
    name: str | Callable[..., Optimizer],
    slices: list[Tensor],
    settings: Settings,
    noise_seeds: Sequence[int],
) -> Optimizer:
    one = (
        make_optimiser(name, slices, seed=noise_seeds[0], **settings)
        if isinstance(name, str)
        else name(slices, **settings)
    )
    if not stackable(one):
        raise InputError(
            f"{type(one).__name__} looks at the parameters of a network together: train these "
            f"networks one by one"
        )
    if type(one) is EntropySGD:
        return _StackedEntropySGD(slices, seeds=noise_seeds, **settings)
    on_cpu = slices[0].device.type == "cpu"
    fused = type(one) in _FUSED or (on_cpu and type(one) in _FUSED_ON_CPU)
    for group in one.param_groups:
        if fused and not group.get("differentiable"):
            group["fused"], group["foreach"] = True, False
        elif "foreach" in group:
            group["foreach"] = True
    return one


def _slices(parameters: list[Tensor], gradients: list[Tensor], part: slice) -> list[Tensor]:
    """Some networks of every tensor, with their gradients."""
    slices = [p[part] for p in parameters]
    for own, gradient in zip(slices, gradients, strict=True):
        own.grad = gradient[part]
    return slices


