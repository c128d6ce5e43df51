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
_FUSED = (Adam, AdamW, Adagrad)
_REGISTER = 64  # bytes of the widest vector registers


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
        parts: list[Optimizer] = []
        start = 0
        for _, same in groupby(settings):
            stop = start + len(list(same))
            seeds = noise_seeds[start:stop]
            parts.append(_make(name, (start, stop), settings[start], seeds, parameters, gradients))
            start = stop
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
        groups = []
        for group in self.optimiser.param_groups:
            start, stop = group["networks"]
            places = [place for place, k in enumerate(kept) if start <= k < stop]
            if not places:
                continue
            own = [kept[place] - start for place in places]
            group["networks"] = places[0], places[-1] + 1
            slices = _slices(group, parameters, gradients)
            for old, new in zip(group["params"], slices, strict=True):
                for key, value in self.optimiser.state.get(old, {}).items():
                    whole = isinstance(value, Tensor) and value.shape == old.shape
                    state[new][key] = value[own] if whole else value
            group["params"] = slices
            if "generators" in group:
                group["generators"] = [group["generators"][k] for k in own]
            groups.append(group)
        self.optimiser.param_groups[:] = groups
        self.optimiser.state = state


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
    networks: tuple[int, int],
    settings: Settings,
    noise_seeds: Sequence[int],
    parameters: list[Tensor],
    gradients: list[Tensor],
) -> Optimizer:
    """An optimiser of networks with the same settings, the first and the one after the last."""
    group: dict[str, Any] = {"networks": networks, "tensors": range(len(parameters))}
    slices = _slices(group, parameters, gradients)
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
        one = _StackedEntropySGD(slices, seeds=noise_seeds, **settings)
    one.param_groups[0] |= group
    if "foreach" in one.param_groups[0]:
        one.param_groups[0]["foreach"] = True
    if type(one) in _FUSED:
        _fuse(one)
    return one


def _fuse(optimiser: Optimizer) -> None:
    """Have torch's fused kernels, three times as fast, do what they do the same in every company.

    What does not fill a vector register at the end of a tensor is rounded in another way, so a
    number's place in the stack would count: such tensors, biases mostly, keep the usual kernels.
    """
    (group,) = optimiser.param_groups
    params, tensors = group["params"], group["tensors"]
    fits = [p[0].numel() * p.element_size() % _REGISTER == 0 for p in params]
    if params[0].device.type != "cpu" or group.get("differentiable"):
        return
    parts = []
    for fused in (True, False):
        own = [i for i, fit in enumerate(fits) if fit == fused]
        if own:
            part = group | {"params": [params[i] for i in own], "fused": fused}
            parts.append(part | {"tensors": [tensors[i] for i in own], "foreach": not fused})
    optimiser.param_groups[:] = parts


def _slices(
    group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
) -> list[Tensor]:
    """A group's networks of its tensors, with their gradients."""
    part = slice(*group["networks"])
    slices = [parameters[i][part] for i in group["tensors"]]
    for own, i in zip(slices, group["tensors"], strict=True):
        own.grad = gradients[i][part]
    return slices
