"""One self-contained HTML file, PNG figures and the correlation table of a run folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib import resources
from math import isfinite
from pathlib import Path

import jinja2
import yaml

from planimeter.errors import InputError
from planimeter.estimate import format_with_error
from planimeter.files import whole
from planimeter.report.figures import interactive_figure, printed_figure
from planimeter.report.over_time import curves, interactive_curves, printed_curves
from planimeter.report.table import (
    CorrelationRow,
    DecayRow,
    correlation_rows,
    decay_rows,
    drawn,
    quantities,
    usable,
)
from planimeter.study import Record, Store, Study, trials_of
from planimeter.study.store import OUTDATED
from planimeter.training import optimiser_label

_CONFIG = {"displaylogo": False, "responsive": True}  # of plotly


@dataclass(frozen=True)
class Report:
    """Paths of what was written, and the numbers shown.

    Arguments:
        html: the report.
        png: its figure; None where no quantity is to be drawn, or has a value.
        over_time: the figure of what was recorded during training; None if nothing was.
        rows: the correlation table.
        decays: what each weight decay does, where the grid has several.
        warnings: what a reader must know: trials missing, not converged, or not trusted.
    """

    html: Path
    png: Path | None
    over_time: Path | None
    rows: list[CorrelationRow]
    decays: list[DecayRow]
    warnings: list[str]


def build_report(store: Store) -> Report:
    """Write `report.html` and `report.png` into a run folder, from its results so far.

    Raises:
        InputError: nothing was run there, or no trial can be shown.
    """
    study, reference = store.study()
    records = store.records()
    if not records:
        raise InputError(f"no trial in {store.folder} is finished: nothing to show")
    if not usable(records):
        raise InputError(f"no trial in {store.folder} {_goal(study)[0]}: nothing to show")
    rows = correlation_rows(study, records)
    decays = decay_rows(study, records)
    warnings = _warnings(study, records)
    html, figure, lines = store.folder / "report.html", "", ""
    png = store.folder / "report.png" if drawn(study, records) else None
    if png is not None:
        printed_figure(study, records, rows, png)
        figure = interactive_figure(study, records, rows).to_html(
            full_html=False, include_plotlyjs=True, config=_CONFIG
        )
    recorded = curves(study, records)
    over_time = store.folder / "over-time.png" if recorded else None
    if over_time is not None:
        printed_curves(recorded, over_time)
        lines = interactive_curves(recorded).to_html(
            full_html=False, include_plotlyjs=png is None, config=_CONFIG
        )
    template = (resources.files("planimeter") / "report" / "report.html.j2").read_text("utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    text = page.render(
        study=study,
        reference=reference,
        figure=figure,
        over_time=lines,
        rows=rows,
        decays=decays,
        format=format_with_error,
        unmet=_goal(study)[2],
        label=optimiser_label,
        warnings=warnings,
        quantities=quantities(study),
        trials=[_trial_line(r, [q.name for q in quantities(study)]) for r in records],
        confidence=f"{100 * study.statistics.confidence:g}",
        specification=yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False),
    )
    with whole(html) as beside:
        beside.write_text(text, encoding="utf-8")
    return Report(html, png, over_time, rows, decays, warnings)


def _goal(study: Study) -> tuple[str, str, str]:
    """What training is for: reached, not reached, and in two words."""
    if study.training.stop == "zero_error":
        return (
            "reached zero error on its training set",
            "did not reach zero error on S",
            "no zero error",
        )
    return "reached its stopping point", "did not reach their stopping point", "not stopped"


def _warnings(study: Study, records: list[Record]) -> list[str]:
    found, total = [], len(trials_of(study))
    missing = {t.key for t in trials_of(study)} - {r.trial.key for r in records}
    if missing:
        found.append(f"{len(missing)} of {total} trials are not done yet.")
    outdated = [r.trial.label for r in records if r.outdated]
    if outdated:
        found.append(f"{len(outdated)} of {total} trials are {OUTDATED}: {', '.join(outdated)}.")
    diverged = [r for r in records if r.result["fit"].get("diverged")]
    if diverged:
        named = (f"{r.trial.label} (epoch {r.result['fit']['epochs']})" for r in diverged)
        found.append(
            f"{len(diverged)} of {len(records)} trials diverged, the loss became infinite or NaN, "
            f"and are left out: {', '.join(named)}."
        )
    stuck = [
        r.trial.label for r in records if not r.result["fit"]["converged"] and r not in diverged
    ]
    if stuck:
        found.append(
            f"{len(stuck)} of {len(records)} trials {_goal(study)[1]} and are left out "
            f"of figures and correlations: {', '.join(stuck)}."
        )
    found += [
        f"{quantity.label} has no finite value in any trial, and no figure."
        for quantity in quantities(study)
        if usable(records) and not any(isfinite(quantity.of(r)[0]) for r in usable(records))
    ]
    doubts: Counter[str] = Counter()
    for record in records:
        for name, estimate in record.result["measures"].items():
            doubts[f"{name} did not converge"] += not estimate["converged"]
        for prior in record.result["log_prior"]:
            doubts["EP did not converge (log P(f) stays unbiased)"] += not prior["converged"]
            for alarm in prior["alarms"]:
                doubts[f"log P(f): {alarm}"] += 1
    found += [
        f"{count} of {len(records)} trials: {what}." for what, count in doubts.items() if count
    ]
    return found


def _trial_line(record: Record, names: list[str]) -> dict[str, object]:
    """A row of the table of trials; what was not measured shows a dash."""
    result = record.result
    cells = []
    for name in names:
        entry = (
            next(iter(result["log_prior"]), None)
            if name == "log_prior"
            else result["measures"].get(name)
        )
        cells.append(
            "–" if entry is None else format_with_error(float(entry["value"]), entry["stderr"])
        )
    return {
        "label": record.trial.label,
        "key": record.key,
        "converged": result["fit"]["converged"],
        "epochs": result["fit"]["epochs"],
        "attack_errors": result["fit"]["attack_errors"],
        "diverged": result["fit"].get("diverged", False),
        "train_error": f"{100 * result['train_error']:.1f}" if "train_error" in result else "–",
        "test_error": f"{100 * result['test_error']:.1f}" if "test_error" in result else "–",
        "train_loss": f"{result['train_loss']:.3g}" if "train_loss" in result else "–",
        "theta_norm": f"{result['theta_norm']:.1f}" if "theta_norm" in result else "–",
        "cells": cells,
    }
