"""`planimeter measure`: the flatness of a trained network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from planimeter import flatness
from planimeter.cli.network import (
    BatchNorm,
    BatchSize,
    Checkpoint,
    Data,
    Float64,
    LossName,
    Model,
    NormaliseLogits,
    Positive,
    Rows,
    subject,
)
from planimeter.cli.output import (
    AsJson,
    Mean,
    Seed,
    Std,
    errors,
    output,
    print_json,
    print_wide_table,
    progress_bar,
)
from planimeter.cli.spectra import print_spectra, spectra, spectrum_record
from planimeter.curvature import SpectralSummary
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness.by_layer import DEFAULT as LAYER_MEASURES
from planimeter.models.loading import load_model
from planimeter.report.files import check_figure_path
from planimeter.report.spectra import save_density_figure

HOW = 44
"""Characters to which the last column may be folded."""
_LARGER = {"sharpness": "sharper", "flatness": "flatter", "none": ""}


def measure(
    model: Model,
    data: Data = "digits",
    checkpoint: Checkpoint = None,
    rows: Rows = 1000,
    mean: Mean = None,
    std: Std = None,
    positive: Positive = None,
    loss: LossName = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--measures", help=f"Comma-separated; default all: {', '.join(flatness.MEASURES)}."
        ),
    ] = None,
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help=f"Of each layer, the others held; default measures: {', '.join(LAYER_MEASURES)}.",
        ),
    ] = False,
    layers: Annotated[
        str | None, typer.Option(help="With --by-layer: modules, comma-separated; default all.")
    ] = None,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum",
            help="The spectra of Hessian and Gauss-Newton matrix (and no other measures, unless "
            "named).",
        ),
    ] = False,
    initial: Annotated[
        Path | None,
        typer.Option(help="Weights before the training, for the distances from them."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="With --spectrum: draw the densities here (.png, .pdf).")
    ] = None,
    batch_size: BatchSize = 500,
    batch_norm: BatchNorm = "eval",
    float64: Float64 = False,
    normalise_logits: NormaliseLogits = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Flatness measures of a network at its weights, each with its error.

    A network with one output is measured on the binary task with the logistic loss, one with
    several on the classes with the cross-entropy.

    Example: planimeter measure mymodels:lenet --checkpoint lenet.pth --data mnist --rows 2000
    """
    if plot is not None and not spectrum:
        raise InputError("--plot draws what --spectrum computes: give both")
    if layers is not None and not by_layer:
        raise InputError("--layers chooses what --by-layer measures: give both")
    if spectrum and by_layer:
        raise InputError("--spectrum is that of the whole network: leave out --by-layer")
    if initial is not None and by_layer:
        raise InputError("--initial is of the whole network: leave out --by-layer")
    if plot is not None:
        check_figure_path(plot)
    network = subject(
        model, checkpoint, data, rows=rows, mean=mean, std=std, positive=positive, loss=loss,
        batch_size=batch_size, batch_norm=batch_norm, float64=float64,
        normalise_logits=normalise_logits, seed=seed,
    )  # fmt: skip
    landscape = network.landscape
    wanted = names.split(",") if names else [] if spectrum else None
    settings: dict[str, dict[str, Any]] = {}
    if initial is not None:
        state = load_model(model, initial, seed=seed).state_dict()
        # A tied tensor has several names there, one here.
        before = landscape.with_state({n: v for n, v in state.items() if n in landscape.state})
        of_start = [name for name, m in flatness.MEASURES.items() if "initial" in m.settings]
        settings = {name: {"initial": before} for name in of_start}
        if wanted is None:
            wanted = [*flatness.all_names(), *of_start]
    started = time.monotonic()
    results: dict[str, Estimate] = {}
    refused: dict[str, str] = {}
    parts: dict[str, dict[str, Estimate]] = {}
    summaries: dict[str, SpectralSummary] = {}
    interrupted = False

    def keep(layer: str, name: str, value: Estimate) -> None:
        parts.setdefault(layer, {})[name] = value

    with progress_bar() as bar:
        task = bar.add_task("loss", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        value, accuracy = landscape.loss(), network.accuracy()
        try:
            if by_layer:
                wanted_layers = layers.split(",") if layers else None
                flatness.measure_layers(
                    landscape,
                    wanted,
                    layers=wanted_layers,
                    seed=seed,
                    progress=progress,
                    finished=keep,
                )
            else:
                flatness.measure(
                    landscape,
                    wanted,
                    settings=settings,
                    seed=seed,
                    progress=progress,
                    # One that is asked for alone and does not apply is an error.
                    refused=None if wanted and len(wanted) == 1 else refused.__setitem__,
                    finished=results.__setitem__,
                )
            summaries = spectra(landscape, seed, progress) if spectrum else {}
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.monotonic() - started
    if plot is not None and summaries:
        densities = {name: summary.density for name, summary in summaries.items()}
        save_density_figure(densities, plot, network.title())
        errors.print(f"wrote {plot}")
    if as_json:
        print_json(
            {
                **network.record(),
                "initial": str(initial) if initial else None,
                "loss": value,
                "accuracy": accuracy,
                "theta_norm": float(landscape.theta.norm()),
                **landscape.record(),
                "seed": seed,
                "seconds": seconds,
                "interrupted": interrupted,
                "refused": refused,
                "measures": {name: _record(name, e) for name, e in results.items()},
                "layers": {
                    layer: {name: _record(name, e) for name, e in found.items()}
                    for layer, found in parts.items()
                },
                "spectra": {name: spectrum_record(s) for name, s in summaries.items()},
            }
        )
        _end(interrupted, bool(results or parts or summaries))
        return
    title = (
        f"{network.title()}: {network.state(value, accuracy)}, "
        f"{landscape.num_parameters:,} parameters, "
        f"‖θ‖ {float(landscape.theta.norm()):.4g}" + (f", from {initial}" if initial else "")
    )
    if by_layer:
        names_found = list(dict.fromkeys(name for found in parts.values() for name in found))
        print_wide_table(
            title,
            ("layer", *names_found),
            [
                (layer, *(str(found.get(name, "–")) for name in names_found))
                for layer, found in parts.items()
            ],
        )
    elif results or not (summaries or interrupted):
        rows_of_table = [
            (
                name,
                str(e),
                _LARGER[flatness.MEASURES[name].orientation],
                f"{e.method}{f'; {e.products} products' if e.products else ''}"
                f" [{flatness.MEASURES[name].reference}]",
            )
            for name, e in results.items()
        ]
        columns = ("measure", "value", "larger is", "how [source]")
        print_wide_table(title, columns, rows_of_table, fold=HOW)
    for name, why in refused.items():
        output.print(f"{name} does not apply: {why}", highlight=False, markup=False)
    if summaries:
        print_spectra(title, summaries)
    if accuracy is not None and accuracy < 1:
        errors.print(
            "note: not all rows are fitted; sharpness depends on the loss at the measuring point",
            style="yellow",
        )

    _end(interrupted, bool(results or parts or summaries))


def _end(interrupted: bool, some: bool) -> None:
    """After Ctrl-C what was finished has been printed; say that it is not all."""
    if interrupted:
        finished = "these are the measures that were" if some else "no measure was"
        errors.print(f"interrupted: {finished} finished")
        raise typer.Exit(130)


def _record(name: str, estimate: Estimate) -> dict[str, Any]:
    """A value, and what it is a value of."""
    of = flatness.MEASURES[name]
    return {
        **estimate.as_dict(),
        "formula": of.formula,
        "orientation": of.orientation,
        "invariant_to": sorted(of.invariant_to),
        "reference": of.reference,
    }
