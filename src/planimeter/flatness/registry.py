"""The registry of measures, and `measure`, which computes several of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from planimeter.curvature import frobenius_norm, top_eigenvalues, trace
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness.definition import Measure
from planimeter.flatness.keskar import keskar_sharpness
from planimeter.landscape import LossLandscape


def _top_eigenvalue(landscape: LossLandscape, **settings: Any) -> Estimate:
    pairs = top_eigenvalues(landscape.hessian(), 1, **settings)
    return Estimate(
        float(pairs.values[0]),
        0.0,
        f"Lanczos, residual {float(pairs.residuals[0]):.1e}",
        pairs.products,
        bool(pairs.converged[0]),
    )


def _trace(landscape: LossLandscape, **settings: Any) -> Estimate:
    return trace(landscape.hessian(), **settings)


def _frobenius_norm(landscape: LossLandscape, **settings: Any) -> Estimate:
    return frobenius_norm(landscape.hessian(), **settings)


def _keskar_sharpness(landscape: LossLandscape, **settings: Any) -> Estimate:
    return keskar_sharpness(landscape, **settings).as_estimate()


MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure(
            "top_eigenvalue",
            "λ_max of the Hessian",
            "λ_max",
            "max_v v'Hv / v'v",
            "granziol2020; zhang2021 Section 2",
            "sharpness",
            frozenset(),
            _top_eigenvalue,
            top_eigenvalues,
        ),
        Measure(
            "trace",
            "trace of the Hessian",
            "trace",
            "tr H",
            "granziol2020",
            "sharpness",
            frozenset(),
            _trace,
            trace,
        ),
        Measure(
            "frobenius_norm",
            "Frobenius norm of the Hessian",
            "‖H‖_F",
            "(tr H²)^(1/2)",
            "granziol2020",
            "sharpness",
            frozenset(),
            _frobenius_norm,
            frobenius_norm,
        ),
        Measure(
            "keskar_sharpness",
            "Keskar sharpness (%)",
            "sharpness",
            "max over the box |θ'-θ| ≤ ζ(|θ|+1) of 100 (L(θ') - L(θ)) / (1 + L(θ))",
            "Keskar et al. 2016; zhang2021 Definition 2.1",
            "sharpness",
            frozenset(),
            _keskar_sharpness,
            keskar_sharpness,
        ),
    )
}


def measure(
    landscape: LossLandscape,
    names: Iterable[str] | None = None,
    *,
    settings: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, Estimate]:
    """Several flatness measures of one landscape, each with its error.

    Arguments:
        landscape: where to measure.
        names: registry names; None for all.
        settings: keyword settings of individual measures, by name.
        seed: of every measure that draws random numbers, where `settings` gives none.
        progress: called with the name of the measure that runs, its steps done and their number.

    Raises:
        InputError: a name is not in the registry.
    """
    chosen = list(MEASURES if names is None else names)
    for name in chosen:
        if name not in MEASURES:
            raise InputError(f"no measure {name!r}; there are {', '.join(MEASURES)}")
    results = {}
    for name in chosen:
        options = {"seed": seed} | (settings or {}).get(name, {})
        options["progress"] = partial(progress, name)
        started = time.perf_counter()
        results[name] = replace(
            MEASURES[name].compute(landscape, **options),
            seed=options["seed"],
            dtype=str(landscape.dtype).removeprefix("torch."),
            device=str(landscape.device),
            seconds=time.perf_counter() - started,
        )
    return results
