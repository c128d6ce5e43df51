r"""Flatness measures layer by layer.

A layer's measure is that of the loss as a function of the layer's parameters alone,
:math:`\theta_l \mapsto L(\theta_1, \dots, \theta_l, \dots)`: the Hessian becomes the layer's
diagonal block, a box or ball is one around the layer's weights, a norm is the layer's. Traces add
up to that of the network, and no layer's largest eigenvalue is above the network's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from planimeter.errors import InputError, MeasurementWarning
from planimeter.estimate import Estimate
from planimeter.flatness.measurements import LayerMeasurements
from planimeter.flatness.registry import MEASURES, check_names, check_settings, measure
from planimeter.landscape import LossLandscape

DEFAULT = (
    "top_eigenvalue", "trace", "frobenius_norm", "keskar_sharpness", "rangamani",
    "relative_flatness", "adaptive_sharpness", "fisher_rao_norm", "l2_norm",
)  # fmt: skip


def measure_layers(
    landscape: LossLandscape,
    names: Iterable[str] | None = None,
    *,
    layers: Iterable[str] | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    refused: Callable[[str, str], None] | None = None,
    finished: Callable[[str, str, Estimate], None] = lambda layer, name, value: None,
) -> LayerMeasurements:
    """Flatness measures of each layer, the others held where they are.

    Arguments:
        landscape: of the whole network.
        names: registry names of measures that have `by_layer`; None for `DEFAULT`.
        layers: names of modules, or of parameters; None for every module that has parameters of
            its own.
        settings, seed: as for `measure`.
        progress: called with "layer: measure", its steps done and their number.
        refused: called with "layer: measure" where one does not apply, and why; None for a
            warning.
        finished: called with the layer, the name and the value of each measure when it is done.

    Returns:
        layer to measure to value.

    Raises:
        InputError: there is no such layer or measure, or it is defined for a whole network only.
    """
    chosen = list(DEFAULT if names is None else names)
    check_names(chosen)
    check_settings(settings or {})
    for name in chosen:
        if not MEASURES[name].by_layer:
            possible = ", ".join(n for n, m in MEASURES.items() if m.by_layer)
            raise InputError(
                f"{name} is defined for a whole network; by layer there are {possible}"
            )
    result = LayerMeasurements()
    wanted = layer_names(landscape) if layers is None else list(layers)
    for layer, part in [(layer, landscape.restricted([layer])) for layer in wanted]:
        result[layer] = measure(
            part,
            chosen,
            settings=settings,
            seed=seed,
            progress=partial(_prefixed, progress, layer),
            refused=partial(_prefixed, refused or _warn, layer),
            finished=partial(finished, layer),
        )
    return result


def layer_names(landscape: LossLandscape) -> list[str]:
    """The modules that have trainable parameters of their own, in the order of the parameters.

    A parameter of the network itself stands for itself.
    """
    return list(dict.fromkeys(n.rpartition(".")[0] or n for n in landscape.parameters))


def _warn(name: str, why: str) -> None:
    warnings.warn(f"{name} does not apply: {why}", MeasurementWarning, stacklevel=5)


def _prefixed(call: Callable[..., None], layer: str, name: str, *more: Any) -> None:
    call(f"{layer}: {name}", *more)
