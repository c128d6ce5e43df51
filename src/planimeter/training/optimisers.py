"""Optimisers by the names that study files use; docs/training.md has their formulas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError, suggestion
from planimeter.training.entropy_sgd import EntropySGD
from planimeter.training.padam import Padam
from planimeter.training.sam import SAM


@dataclass(frozen=True)
class Optimiser:
    """All there is to say of an optimiser.

    Arguments:
        make: parameters and keyword settings to the optimiser of torch.
        label: how tables and figures write it.
        full_batch: whether every step is on all training rows: `fit(batch_size=None)`.
    """

    make: Callable[..., torch.optim.Optimizer]
    label: str
    full_batch: bool = False


OPTIMISERS: dict[str, Optimiser] = {
    "sgd": Optimiser(torch.optim.SGD, "SGD"),
    "momentum": Optimiser(partial(torch.optim.SGD, momentum=0.9), "Momentum"),
    "nesterov": Optimiser(partial(torch.optim.SGD, momentum=0.9, nesterov=True), "Nesterov"),
    "gradient_descent": Optimiser(torch.optim.SGD, "Gradient descent", full_batch=True),
    "adam": Optimiser(torch.optim.Adam, "Adam"),
    "adamw": Optimiser(torch.optim.AdamW, "AdamW"),
    "adagrad": Optimiser(torch.optim.Adagrad, "Adagrad"),
    "rmsprop": Optimiser(torch.optim.RMSprop, "RMSProp"),
    "padam": Optimiser(Padam, "Padam"),
    "sam": Optimiser(SAM, "SAM"),
    "entropy_sgd": Optimiser(EntropySGD, "Entropy-SGD"),
}

FULL_BATCH = frozenset(name for name, entry in OPTIMISERS.items() if entry.full_batch)
"""Optimisers that take every step on all training rows: `fit(batch_size=None)`."""


def optimiser_label(name: str) -> str:
    """How tables and figures write an optimiser; its name where the registry does not know it."""
    return OPTIMISERS[name].label if name in OPTIMISERS else name


def make_optimiser(
    name: str, params: Iterable[Tensor], *, seed: int = 0, **settings: Any
) -> torch.optim.Optimizer:
    """An optimiser by name; `seed` goes to those that draw random numbers.

    Arguments:
        name: one of `OPTIMISERS`. "gradient_descent" is SGD whose batch is all rows, which is for
            the training loop to see to (`Optimiser.full_batch`).
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
    known = [p for p in inspect.signature(OPTIMISERS[name].make).parameters if p != "params"]
    for setting in settings:
        if setting not in known:
            raise InputError(
                f"optimiser {name} has no setting {setting!r}; there are {', '.join(known)}"
                f"{suggestion(setting, known)}"
            )
    if "seed" in known:
        settings = settings | {"seed": seed}
    try:
        return OPTIMISERS[name].make(params, **settings)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"optimiser {name}: {error}") from error
