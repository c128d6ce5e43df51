"""Optimisers by the names that study files use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.training.entropy_sgd import EntropySGD

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "entropy_sgd": EntropySGD,
}


def make_optimiser(
    name: str, params: Iterable[Tensor], *, seed: int = 0, **settings: Any
) -> torch.optim.Optimizer:
    """An optimiser by name; `seed` goes to those that draw random numbers.

    Raises:
        InputError: the name or a setting is unknown.
    """
    if name not in OPTIMISERS:
        raise InputError(f"no optimiser {name!r}; there are {', '.join(OPTIMISERS)}")
    if OPTIMISERS[name] is EntropySGD:
        settings = settings | {"seed": seed}
    try:
        return OPTIMISERS[name](params, **settings)
    except TypeError as error:
        raise InputError(f"optimiser {name}: {error}") from error
