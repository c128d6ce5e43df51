"""`planimeter audit`: which flatness measures depend on how the weights are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

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
    print_wide_table,
    progress_bar,
)
from planimeter.flatness import MEASURES
from planimeter.flatness.registry import check_names
from planimeter.report.audit import save_audit_figure
from planimeter.report.files import check_figure_path
from planimeter.symmetry import Audit
from planimeter.symmetry import audit as run_audit
from planimeter.symmetry.audit_text import percent
from planimeter.symmetry.invariance import INVARIANT


def audit(
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
            "--measures",
            help="Comma-separated; default all but those of the Gauss-Newton matrix.",
        ),
    ] = None,
    factor: Annotated[
        float, typer.Option(help="Layers and neurons are multiplied by up to this factor.")
    ] = 5.0,
    tolerance: Annotated[
        float, typer.Option(help="Relative changes up to this count as none.")
    ] = 2e-3,
    plot: Annotated[Path | None, typer.Option(help="Draw a heat map here (.png, .pdf).")] = None,
    batch_size: BatchSize = 500,
    batch_norm: BatchNorm = "eval",
    float64: Float64 = False,
    normalise_logits: NormaliseLogits = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a network at its weights, and at other weights of the same function.

    Layers and neurons are rescaled by random factors that the next layer takes back (the outputs
    are compared on the data); what changes then says something about the weights and not about
    the function. The last column multiplies the logits: the same classes, another confidence.

    Example: planimeter audit mymodels:lenet --checkpoint lenet.pth --data mnist --rows 2000
    """
    if plot is not None:
        check_figure_path(plot)
    if names is not None:
        check_names(names.split(","))
    network = subject(
        model, checkpoint, data, rows=rows, mean=mean, std=std, positive=positive, loss=loss,
        batch_size=batch_size, batch_norm=batch_norm, float64=float64,
        normalise_logits=normalise_logits, seed=seed,
    )  # fmt: skip
    landscape = network.landscape
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("loss", total=None)

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        value, accuracy = landscape.loss(), network.accuracy()
        found = run_audit(
            landscape,
            names.split(",") if names else None,
            factor=factor,
            tolerance=tolerance,
            seed=seed,
            progress=progress,
        )
    seconds = time.monotonic() - started
    title = f"{network.title()}: {network.state(value, accuracy)}"
    if plot is not None:
        save_audit_figure(found, plot, network.title())
        errors.print(f"wrote {plot}")
    if as_json:
        print_json(
            {
                **network.record(),
                "loss": value,
                "accuracy": accuracy,
                **landscape.record(),
                "seconds": seconds,
                **found.as_dict(),
            }
        )
        return
    _print(found, title, seconds)


def _print(found: Audit, title: str, seconds: float) -> None:
    kinds = list(found.changes)
    rows = []
    for name, estimate in found.values.items():
        cells = []
        for kind in kinds:
            change = found.changes[kind].get(name)
            if change is None:
                cells.append("does not apply")
                continue
            same = change.verdict == INVARIANT
            cells.append(percent(change.relative, 0.0 if same else change.error))
        rows.append((MEASURES[name].name, str(estimate), *cells, found.verdict(name)))
    columns = ("measure", "value", *kinds, "verdict")
    print_wide_table(f"{title}; {seconds:.0f} s", columns, rows)
    for kind, names in found.names.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        output.print(f"{kind}: {shown}", highlight=False, markup=False)
    for kind, why in found.absent.items():
        output.print(f"{kind}: {why}", highlight=False, markup=False)
    for name, why in found.refused.items():
        output.print(f"{name} does not apply: {why}", highlight=False, markup=False)
    quick = {n: MEASURES[n].quick for n in found.values if MEASURES[n].quick}
    if quick:
        shown = "; ".join(
            f"{name} {', '.join(f'{k} {v}' for k, v in options.items())}"
            for name, options in quick.items()
        )
        output.print(f"cheaper than measure's: {shown}", highlight=False, markup=False)
    steady = found.to_report()
    for why in dict.fromkeys(steady.untested.values()):
        untested = [name for name, own in steady.untested.items() if own == why]
        output.print(f"not tested: {', '.join(untested)} ({why})", highlight=False, markup=False)
    changing = [name for name in found.values if "changes" in found.verdict(name)]
    if steady and changing:
        output.print(
            f"\n{', '.join(changing)} would be other numbers had the same function other weights. "
            f"Report instead: {', '.join(steady)}.",
            highlight=False,
            markup=False,
        )
