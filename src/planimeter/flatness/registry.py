"""The registry of measures, and `measure`, which computes several of them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from planimeter.errors import MeasurementWarning, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness import (
    adaptive,
    hessian,
    margins,
    norms,
    over_rescalings,
    pac_bayes,
    relative,
    riemannian,
)
from planimeter.flatness import (
    box_sharpness as keskar,
)
from planimeter.flatness import settings as settings_of
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.measurements import Measurements
from planimeter.flatness.shared import sharing
from planimeter.landscape import LossLandscape

FAMILIES = (
    hessian, keskar, riemannian, relative, over_rescalings, adaptive, norms, margins, pac_bayes,
)  # fmt: skip

MEASURES: dict[str, Measure] = {m.name: m for family in FAMILIES for m in family.MEASURES}


def all_names() -> list[str]:
    """The measures that need nothing but a landscape."""
    return [name for name, m in MEASURES.items() if "initial" not in m.settings]


def check_names(names: Iterable[str]) -> None:
    """Refuse the first name that is not in the registry, with the nearest that are.

    Raises:
        InputError: there is one.
    """
    settings_of.check_names(names, MEASURES)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that the measures do not have: `planimeter.flatness.settings`.

    Raises:
        InputError: a measure, a setting or a value is not one of the registry's.
    """
    settings_of.check_settings(settings, MEASURES)


def measure(
    landscape: LossLandscape,
    names: str | Iterable[str] | None = None,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    refused: Callable[[str, str], None] | None = None,
    finished: Callable[[str, Estimate], None] = lambda name, value: None,
) -> Measurements:
    """Several flatness measures of one landscape, each with its error.

    Eigenpairs, densities and what products have in common are computed once for those that ask for
    the same, with the same settings and seed: a value does not depend on what else is asked for.

    Arguments:
        landscape: where to measure.
        names: one of the registry, or several; None for all that need nothing but a landscape.
        settings: keyword settings of individual measures, by name.
        seed: of every measure that draws random numbers, where `settings` gives none.
        progress: called with the name of the measure that runs, its steps done and their number.
        refused: called with the name of a measure that does not apply to the network or loss, and
            why; None for a warning. The others still run.
        finished: called with the name and value of each measure when it is done.

    Raises:
        InputError: a name is not in the registry, or a setting not one of its measure; the nearest
            are suggested. Nothing has been computed then.
        NotApplicableError: only one measure is asked for, it does not apply, and nobody hears of
            it by `refused`.
    """
    chosen = [names] if isinstance(names, str) else list(all_names() if names is None else names)
    check_names(chosen)
    check_settings(settings or {})
    results: dict[str, Estimate] = {}
    with sharing():
        for name in chosen:
            options = {"seed": seed} | (settings or {}).get(name, {})
            options["progress"] = partial(progress, name)
            started = time.perf_counter()
            progress(name, 0, 1)
            try:
                found = MEASURES[name].compute(landscape, **options)
            except NotApplicableError as error:
                if len(chosen) == 1 and refused is None:
                    raise
                if refused is not None:
                    refused(name, str(error))
                else:
                    warnings.warn(
                        f"{name} does not apply: {error}", MeasurementWarning, stacklevel=2
                    )
                continue
            results[name] = replace(
                found,
                dtype=str(landscape.dtype).removeprefix("torch."),
                device=str(landscape.device),
                seconds=time.perf_counter() - started,
            )
            finished(name, results[name])
    return Measurements({name: results[name] for name in chosen if name in results})
