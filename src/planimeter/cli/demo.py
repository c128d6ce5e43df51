"""`planimeter demo`: the main job on embedded data, in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planimeter.cli.output import AsJson, errors
from planimeter.cli.study import run_and_report
from planimeter.study import load_study, trials_of


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default one a core.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed needs another --out.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train 63 networks on handwritten digits, and see which quantity predicts their test error.

    The digits come with scikit-learn; nothing is downloaded. Results are kept in the run folder, so
    a second call shows them at once.

    Example: planimeter demo --out runs/demo
    """
    study = load_study("demo").model_copy(update={"seed": seed})
    errors.print(
        f"{study.title}\n{len(trials_of(study))} networks: train to zero error, then log P(f), "
        f"sharpness, λ_max and trace of each (a minute or two)",
        highlight=False,
    )
    run_and_report(study, "demo", out, workers=workers, as_json=as_json)
