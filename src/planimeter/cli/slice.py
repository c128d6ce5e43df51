"""`planimeter slice`: the loss along directions through a trained network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

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
    print_table,
    progress_bar,
)
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.report.files import check_figure_path
from planimeter.report.slices import save_slice_figure
from planimeter.slices import (
    Direction,
    Slice,
    eigenvector_directions,
    random_direction,
    slice_1d,
    slice_2d,
)
from planimeter.slices.directions import NORMALISATIONS
from planimeter.slices.file import check_slice_path

ALONG = (*NORMALISATIONS, "eigenvectors")
POINTS = {False: 51, True: 25}
"""By default, on a line and along each direction of a plane."""
SHOWN = 11
"""Lines of the table of a curve."""


def slice_(
    model: Model,
    data: Data = "digits",
    checkpoint: Checkpoint = None,
    rows: Rows = 1000,
    mean: Mean = None,
    std: Std = None,
    positive: Positive = None,
    loss: LossName = None,
    along: Annotated[
        str,
        typer.Option(
            help="Random directions normalised by filter or layer or not (none), or the top "
            "eigenvectors of the Hessian: " + ", ".join(ALONG) + "."
        ),
    ] = "filter",
    two: Annotated[bool, typer.Option("--two", help="A plane of two directions.")] = False,
    points: Annotated[
        int | None,
        typer.Option(
            min=2, help=f"Along each direction; default {POINTS[False]}, in a plane {POINTS[True]}."
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(help="Farthest distance, in lengths of the direction.")
    ] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it here (.png, .pdf, .svg; .html to explore).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Keep the grid here (.npz), and go on where it ends.")
    ] = None,
    batch_size: BatchSize = 500,
    batch_norm: BatchNorm = "eval",
    float64: Float64 = False,
    normalise_logits: NormaliseLogits = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The loss and accuracy on a line or a plane through a network's weights.

    A distance of 1 along a normalised random direction changes each filter by its own norm (biases
    and normalisation layers stay); eigenvectors have length 1, and the quadratic model is drawn
    beside the loss. The second random direction has the seed after the first one's. After Ctrl-C
    what is done is shown, and with --out the same command does the rest.

    Example: planimeter slice mymodels:lenet --checkpoint lenet.pth --data mnist --plot slice.png
    """
    if along not in ALONG:
        raise InputError(f"no directions {along!r}; there are {', '.join(ALONG)}")
    if not 0 < radius < float("inf"):
        raise InputError(f"radius must be positive and finite, got {radius:g}")
    if plot is not None:
        check_figure_path(plot, interactive=True)
    if out is not None:
        check_slice_path(out)
    network = subject(
        model, checkpoint, data, rows=rows, mean=mean, std=std, positive=positive, loss=loss,
        batch_size=batch_size, batch_norm=batch_norm, float64=float64,
        normalise_logits=normalise_logits, seed=seed,
    )  # fmt: skip
    count = POINTS[two] if points is None else points
    # Whole steps, so that 0 is exactly on a grid with an odd number of points.
    steps = torch.arange(1 - count, count, 2, dtype=torch.float64)
    distances = radius * steps / (count - 1)
    with progress_bar() as bar:
        task = bar.add_task("directions", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        directions = _directions(network.landscape, along, 2 if two else 1, seed)
        bar.update(task, description="points of the grid")
        if two:
            first, second = directions
            result = slice_2d(
                network.landscape, first, second, distances, out=out, progress=progress
            )
        else:
            (line,) = directions
            result = slice_1d(network.landscape, line, distances, out=out, progress=progress)
    title = f"{network.title()}: {network.loss_function}"
    if plot is not None:
        save_slice_figure(result, plot, title)
        errors.print(f"wrote {plot}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(
            network.record()
            | {"along": along, "radius": radius, "seed": seed}
            | {"slice": result.as_dict()}
        )
    else:
        _print(title, result)
    if not result.complete:
        kept = f"; whole rows are in {out}, and the same command does the rest" if out else ""
        errors.print(
            f"interrupted: {result.points} of {result.losses.numel()} points{kept}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)


def _directions(landscape: LossLandscape, along: str, count: int, seed: int) -> list[Direction]:
    if along == "eigenvectors":
        return eigenvector_directions(landscape, count, seed=seed)
    return [random_direction(landscape, seed + i, along) for i in range(count)]


def _print(title: str, result: Slice) -> None:
    """What was found, and of a curve some of its points."""
    if result.losses.ndim == 1:
        columns = ["distance", "loss"]
        columns += ["quadratic model"] if result.quadratic else []
        columns += ["accuracy (%)"] if result.accuracies is not None else []
        lines = []
        spread = torch.linspace(0, len(result.losses) - 1, min(SHOWN, len(result.losses)))
        for i in spread.round().long().tolist():
            distance = result.distances[0][i]
            line = [f"{float(distance):.4g}", f"{float(result.losses[i]):.6g}"]
            if result.quadratic is not None:
                line.append(f"{float(result.quadratic(distance)):.6g}")
            if result.accuracies is not None:
                line.append(f"{100 * float(result.accuracies[i]):.2f}")
            lines.append(line)
        print_table(title, columns, lines)
    else:
        output.print(title, highlight=False, soft_wrap=True)
    output.print(str(result), highlight=False, soft_wrap=True)
