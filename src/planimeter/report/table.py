"""The numbers behind a report: quantities of the trials, and their correlations with the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planimeter.flatness import MEASURES
from planimeter.study import Record, Study
from planimeter.study.statistics import Correlation, correlations


@dataclass(frozen=True)
class Quantity:
    """A number that each trial has: its name in the study, how it is written and scaled."""

    name: str
    label: str
    symbol: str
    logarithmic: bool

    def of(self, record: Record) -> tuple[float, float]:
        """Value and standard error in one trial; NaN where it could not be measured."""
        if self.name == "log_prior":
            entries = record.result["log_prior"]
            entry = entries[0] if entries else {"value": np.nan, "stderr": np.nan}
        else:
            entry = record.result["measures"].get(self.name, {"value": np.nan, "stderr": np.nan})
        return float(entry["value"]), float(entry["stderr"])


@dataclass(frozen=True)
class CorrelationRow:
    """One line of the correlation table: an optimiser and a quantity against the test error."""

    optimiser: str
    quantity: Quantity
    pearson: Correlation
    spearman: Correlation
    kendall: Correlation


def quantities(study: Study) -> list[Quantity]:
    """What the figures of a study show, log P(f) under its first noise convention."""
    noise = next(iter(study.prior.noise), 0.0)  # without any there is no such figure
    convention = "Heaviside" if noise == 0 else f"noise {noise:g}"
    return [
        Quantity("log_prior", f"log P(f), {convention} (nats)", "log P(f)", False)
        if name == "log_prior"
        else Quantity(name, MEASURES[name].label, MEASURES[name].symbol, True)
        for name in study.figures
    ]


def usable(records: Sequence[Record]) -> list[Record]:
    """Trials that reached zero error and could be measured."""
    return [r for r in records if r.result["fit"]["converged"] and "test_error" in r.result]


def by_optimiser(study: Study, records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each optimiser in the order of the study, by key.

    Not in the order in which they finished, which the bootstrap would turn into other intervals.
    """
    records = sorted(records, key=lambda r: r.key)
    return {
        o.name: [r for r in records if r.trial.optimiser["name"] == o.name]
        for o in study.grid.optimisers
    }


def correlation_rows(study: Study, records: Sequence[Record]) -> list[CorrelationRow]:
    """The correlation of every quantity with the test error, an optimiser at a time.

    Only trials with a finite value of the quantity count; the number is in each `Correlation`.
    """
    rows = []
    for optimiser, own in by_optimiser(study, usable(records)).items():
        for quantity in quantities(study):
            pairs = [(quantity.of(r)[0], r.result["test_error"]) for r in own]
            finite = np.array([p for p in pairs if np.isfinite(p[0])]).reshape(-1, 2)
            found = correlations(
                finite[:, 0],
                finite[:, 1],
                bootstrap=study.statistics.bootstrap,
                confidence=study.statistics.confidence,
                seed=study.seed,
            )
            rows.append(CorrelationRow(optimiser, quantity, **found))
    return rows
