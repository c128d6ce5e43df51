"""`planimeter measure`: the flatness of a trained network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from planimeter import flatness
from planimeter.cli.output import (
    AsJson,
    Mean,
    Seed,
    Std,
    errors,
    print_json,
    print_table,
    progress_bar,
)
from planimeter.cli.prior import classes, numbers, say_untrained
from planimeter.cli.spectra import print_spectra, spectra, spectrum_record
from planimeter.data import load, normalise
from planimeter.errors import InputError
from planimeter.landscape import BATCH_NORM, LossLandscape
from planimeter.losses import LOSSES
from planimeter.models.loading import load_model
from planimeter.report.spectra import save_density_figure


def measure(
    model: Annotated[str, typer.Argument(help="module:callable that makes the network.")],
    data: Annotated[str, typer.Option(help="Data set; its training part is used.")] = "digits",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="The first so many rows; 0 for all.")] = 1000,
    mean: Mean = None,
    std: Std = None,
    positive: Annotated[
        str, typer.Option(help="Classes that count as 1, for one output.")
    ] = "5,6,7,8,9",
    loss: Annotated[
        str | None, typer.Option(help=f"{', '.join(LOSSES)}; default by outputs.")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--measures", help=f"Comma-separated; default all: {', '.join(flatness.MEASURES)}."
        ),
    ] = None,
    spectrum: Annotated[
        bool,
        typer.Option(
            "--spectrum",
            help="The spectra of Hessian and Gauss-Newton matrix (and no other measures, unless "
            "named).",
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="With --spectrum: draw the densities here (.png, .pdf).")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time, for memory.")] = 500,
    batch_norm: Annotated[
        str, typer.Option(help=f"How BatchNorm runs: {', '.join(BATCH_NORM)}.")
    ] = "eval",
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in double precision.")
    ] = False,
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
    means, stds = numbers(mean), numbers(std)
    network = load_model(model, checkpoint, seed=seed)
    say_untrained(model, checkpoint, seed)
    dataset = load(data)
    count = rows or len(dataset.labels)
    inputs, labels = dataset.inputs[:count], dataset.labels[:count]
    if float64:
        network, inputs = network.double(), inputs.double()
    inputs = normalise(inputs, means, stds)
    outputs = _outputs(network, inputs, model, data)
    binary = outputs == 1
    if not binary and outputs < dataset.classes:
        raise InputError(
            f"{model} has {outputs} outputs, {data} {dataset.classes} classes: use one output "
            f"for a binary task, or one a class"
        )
    chosen = loss or ("binary_cross_entropy" if binary else "cross_entropy")
    if chosen not in LOSSES:
        raise InputError(f"no loss {chosen!r}; there are {', '.join(LOSSES)}")
    if binary:
        labels = torch.isin(labels, torch.tensor(classes(positive))).long()
    landscape = LossLandscape(
        network, LOSSES[chosen], (inputs, labels), batch_size=batch_size, batch_norm=batch_norm
    )
    wanted = names.split(",") if names else [] if spectrum else None
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("loss", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        value, accuracy = landscape.loss(), landscape.accuracy()
        results = flatness.measure(landscape, wanted, seed=seed, progress=progress)
        summaries = spectra(landscape, seed, progress) if spectrum else {}
    seconds = time.monotonic() - started
    if plot is not None:
        densities = {name: summary.density for name, summary in summaries.items()}
        save_density_figure(densities, plot, f"{model} on {landscape.num_rows} rows of {data}")
        errors.print(f"wrote {plot}")
    if as_json:
        print_json(
            {
                "model": model,
                "data": data,
                "rows": landscape.num_rows,
                "mean": means,
                "std": stds,
                "parameters": landscape.num_parameters,
                "loss_function": chosen,
                "loss": value,
                "accuracy": accuracy,
                "theta_norm": float(landscape.theta.norm()),
                **landscape.record(),
                "seed": seed,
                "seconds": seconds,
                "measures": {name: e.as_dict() for name, e in results.items()},
                "spectra": {name: spectrum_record(s) for name, s in summaries.items()},
            }
        )
        return
    title = (
        f"{model} on {landscape.num_rows} rows of {data}: {chosen} {value:.4g}, accuracy "
        f"{100 * accuracy:.2f} %, {landscape.num_parameters:,} parameters, "
        f"‖θ‖ {float(landscape.theta.norm()):.4g}"
    )
    if results or not summaries:
        rows_of_table = [
            (flatness.MEASURES[n].label, str(e), e.method, str(e.products) if e.products else "")
            for n, e in results.items()
        ]
        print_table(title, ("measure", "value", "how", "products"), rows_of_table)
    if summaries:
        print_spectra(title, summaries)
    if accuracy < 1:
        errors.print(
            "note: not all rows are fitted; sharpness depends on the loss at the measuring point",
            style="yellow",
        )


def _outputs(network: torch.nn.Module, inputs: torch.Tensor, model: str, data: str) -> int:
    """Outputs a row, found by running one row; a misfit is an error in words."""
    network.eval()
    try:
        with torch.no_grad():
            result = network(inputs[:1])
    except RuntimeError as error:
        raise InputError(
            f"{model} does not accept {data} inputs of shape {tuple(inputs[:1].shape)}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return int(result[0].numel())
