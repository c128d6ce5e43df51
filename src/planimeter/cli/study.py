"""`planimeter study`: list, run, status and report of studies."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from planimeter.cli.ending import Terminated, terminated_like_interrupted
from planimeter.cli.output import (
    AsJson,
    errors,
    output,
    print_json,
    print_table,
    print_wide_table,
    progress_bar,
)
from planimeter.estimate import format_with_error
from planimeter.study import Store, Study, Trial, built_in_studies, load_study, trials_of
from planimeter.study.store import OUTDATED

app = typer.Typer(help="Experiments over many networks, from YAML files.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="Id of a built-in study, or a YAML file.")]
Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/STUDY.")]


@app.command("list", epilog="Example: planimeter study list")
def list_studies(as_json: AsJson = False) -> None:
    """The studies that come with planimeter."""
    rows = []
    for name in built_in_studies():
        study = load_study(name)
        rows.append((name, study.title, study.source, len(trials_of(study))))
    if as_json:
        keys = ("id", "title", "source", "trials")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        print_wide_table(
            "Studies",
            ("id", "title", "after", "trials"),
            [[str(c) for c in r] for r in rows],
            fold=24,
        )


@app.command("run", epilog="Example: planimeter study run zhang2021/fig3-mnist --workers 4")
def run(
    reference: Reference,
    out: Out = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default one a core.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler.")] = None,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for a worker while there is none.")
    ] = 60.0,
    seed: Annotated[int | None, typer.Option(help="Replaces the study's own seed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study, or what is left of it, and write its report.

    Results are stored as they come: after Ctrl-C, SIGTERM, or a crash, the same command does the
    rest.
    """
    study = load_study(reference)
    if seed is not None:
        study = study.model_copy(update={"seed": seed})
    folder = out or default_folder(reference, seed)
    run_and_report(
        study,
        reference,
        folder,
        workers=workers,
        scheduler=scheduler,
        patience=patience,
        as_json=as_json,
    )


@app.command("status", epilog="Example: planimeter study status runs/demo")
def status(
    folder: Annotated[Path, typer.Argument(help="Run folder.")], as_json: AsJson = False
) -> None:
    """How much of a run is done."""
    store = Store(folder)
    study, reference = store.study()
    trials, records = trials_of(study), store.records()
    done = {r.key for r in records}
    outdated = [r.trial.label for r in records if r.outdated]
    stuck = [r.trial.label for r in records if not r.result["fit"]["converged"]]
    content = {
        "study": reference,
        "folder": str(folder),
        "trials": len(trials),
        "done": len(records) - len(outdated),
        "outdated": outdated,
        "not_converged": stuck,
        "waiting": [t.label for t in trials if t.key not in done],
    }
    if as_json:
        print_json(content)
        return
    finished = len(records) - len(outdated)
    output.print(f"{reference} in {folder}: {finished} of {len(trials)} trials done")
    if outdated:
        output.print(f"{len(outdated)} are {OUTDATED}", highlight=False)
    if stuck:
        goal = "zero error" if study.training.stop == "zero_error" else "their stopping point"
        output.print(f"{len(stuck)} did not reach {goal}: {', '.join(stuck)}", highlight=False)
    if finished < len(trials):
        output.print(
            f"finish it with: planimeter study run {reference} --out {folder}", highlight=False
        )


@app.command("report", epilog="Example: planimeter study report runs/demo")
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder.")], as_json: AsJson = False
) -> None:
    """Write the HTML report and the figures of a run, finished or not."""
    print_report(Store(folder), as_json)


@app.command("repair", epilog="Example: planimeter study repair runs/demo")
def repair(
    folder: Annotated[Path, typer.Argument(help="Run folder with a damaged results.sqlite.")],
    study: Annotated[
        str | None,
        typer.Option("--study", help="Its study, id or YAML file, if that cannot be read either."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rescue every trial that can be read from a damaged run folder.

    The damaged file is kept beside the new one, as results.damaged.sqlite; `study run` then does
    the trials that are lost.
    """
    from planimeter.study.repair import repair as rescue

    done = rescue(Store(folder), None if study is None else (load_study(study), study))
    if as_json:
        kept = None if done.kept is None else str(done.kept)
        print_json({"rescued": done.rescued, "lost": done.lost, "kept": kept})
    elif done.kept is None:
        output.print(f"nothing to repair: all {done.rescued} trials in {folder} can be read")
    else:
        output.print(
            f"{done.rescued} trials rescued, {done.lost} lost; the damaged file is {done.kept}",
            highlight=False,
            soft_wrap=True,
        )


def default_folder(reference: str, seed: int | None = None) -> Path:
    """`runs/STUDY`, the name of a YAML file without its folders; another seed, another folder."""
    path = Path(reference)
    name = path.stem if path.suffix in (".yaml", ".yml") else reference
    return Path("runs") / (name if seed is None else f"{name}-seed{seed}")


def run_and_report(
    study: Study,
    reference: str,
    folder: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    patience: float = 60.0,
    as_json: bool = False,
) -> None:
    """Run what is missing, then report.

    Exit code 1 if trials failed, 130 on Ctrl-C, 143 on SIGTERM.
    """
    from planimeter.study.runner import run_study

    store = Store(folder)
    total = len(trials_of(study))
    started = time.monotonic()
    try:
        with terminated_like_interrupted(), progress_bar() as bar:
            summary = run_study(
                study,
                store,
                reference,
                workers=workers,
                scheduler=scheduler,
                patience=patience,
                progress=_reporter(bar, reference, total),
                note=partial(errors.print, style="yellow", markup=False, highlight=False),
            )
    except KeyboardInterrupt as end:
        errors.print(
            f"{'terminated' if isinstance(end, Terminated) else 'interrupted'}: "
            f"{len(store.keys())} of {total} trials are stored in {folder}; the same command does "
            f"the rest",
            highlight=False,
        )
        raise typer.Exit(143 if isinstance(end, Terminated) else 130) from None
    errors.print(
        f"{summary.done_now} trials run in {time.monotonic() - started:.0f} s, "
        f"{summary.already_done} were stored already",
        highlight=False,
    )
    for label, reason in summary.failed.items():
        errors.print(f"failed: {label}: {reason}", style="red", markup=False)
    if summary.failed and not store.keys():
        raise typer.Exit(1)
    print_report(store, as_json)
    if summary.failed:
        raise typer.Exit(1)


def _reporter(bar: Progress, reference: str, total: int) -> Any:
    """Progress by trials."""
    task = bar.add_task(f"{reference}: starting workers", total=total)
    if not errors.is_terminal:
        errors.print(f"{reference}: starting workers", highlight=False, soft_wrap=True)

    def report(trial: Trial, result: dict[str, Any] | None, done: int, total: int) -> None:
        told = "failed" if result is None else f"{result['fit']['epochs']} epochs"
        bar.update(task, completed=done, description=f"{reference}: {trial.label}, {told}")

    return report


def print_report(store: Store, as_json: bool) -> None:
    """Write the report of a run folder, and print its table or JSON."""
    from planimeter.report import build_report
    from planimeter.training import optimiser_label

    built = build_report(store)
    if as_json:
        print_json(
            {
                "html": str(built.html),
                "png": None if built.png is None else str(built.png),
                "warnings": built.warnings,
                "correlations": [
                    {"optimiser": r.optimiser, "quantity": r.quantity.name}
                    | {n: vars(getattr(r, n)) for n in ("pearson", "spearman", "kendall")}
                    for r in built.rows
                ],
                "weight_decays": [asdict(row) for row in built.decays],
            }
        )
        return
    for warning in built.warnings:
        errors.print(f"note: {warning}", style="yellow", markup=False)
    lines: list[tuple[str, ...]] = []
    last = ""
    for row in built.rows:
        if row.optimiser != last:
            last = row.optimiser
            lines.append((optimiser_label(last), f"{row.pearson.n} networks", "", ""))
        coefficients = (str(c) for c in (row.pearson, row.spearman, row.kendall))
        lines.append((f"  {row.quantity.symbol}", *coefficients))
    if lines:
        print_table(
            "Correlation with the test error, with intervals",
            ("", "Pearson r", "Spearman ρ", "Kendall τ"),
            lines,
        )
    if built.decays:
        print_wide_table(
            "What weight decay does: means over the networks, with their standard errors",
            ("optimiser, decay", "networks", *built.decays[0].means),
            [
                (
                    f"{optimiser_label(row.optimiser)} {row.weight_decay:g}",
                    str(row.networks),
                    *(format_with_error(*mean) for mean in row.means.values()),
                )
                for row in built.decays
            ],
        )
    output.print(f"report: {built.html.resolve()}", highlight=False, soft_wrap=True)
