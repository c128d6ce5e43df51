"""Optimisers by the names that study files use; docs/training.md has their formulas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError, suggestion
from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.padam import Padam
from planimeter.training.sam import SAM

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "gradient_descent": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "padam": Padam,
    "sam": SAM,
    "entropy_sgd": EntropySGD,
}

FULL_BATCH = frozenset({"gradient_descent"})
"""Optimisers that take every step on all training rows: `fit(batch_size=None)`."""


def make_optimiser(
    name: str, params: Iterable[Tensor], *, seed: int = 0, **settings: Any
) -> torch.optim.Optimizer:
    """An optimiser by name; `seed` goes to those that draw random numbers.

    Arguments:
        name: one of `OPTIMISERS`. "gradient_descent" is SGD whose batch is all rows, which is for
            the training loop to see to (`FULL_BATCH`).
        params: parameters to optimise.
        seed: of an optimiser's own noise.
        settings: keywords of the optimiser, `lr` first of all.

    Raises:
        InputError: the name or a setting is unknown, or a value is out of its range.
    """
    if name not in OPTIMISERS:
        raise InputError(
            f"no optimiser {name!r}; there are {', '.join(OPTIMISERS)}"
            f"{suggestion(name, OPTIMISERS)}"
        )
    known = [p for p in inspect.signature(OPTIMISERS[name]).parameters if p != "params"]
    for setting in settings:
        if setting not in known:
            raise InputError(
                f"optimiser {name} has no setting {setting!r}; there are {', '.join(known)}"
                f"{suggestion(setting, known)}"
            )
    if "seed" in known:
        settings = settings | {"seed": seed}
    try:
        return OPTIMISERS[name](params, **settings)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"optimiser {name}: {error}") from error
