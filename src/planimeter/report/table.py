"""The numbers behind a report: quantities of the trials, and their correlations with the error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planimeter.analysis.correlation import Correlation, correlations
from planimeter.estimate import widening
from planimeter.flatness import MEASURES
from planimeter.study import Record, Study


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


@dataclass(frozen=True)
class DecayRow:
    """The networks of one optimiser and weight decay: means over them, with standard errors.

    Arguments:
        optimiser, weight_decay: which.
        networks: how many reached their goal and could be measured.
        means: "train accuracy (%)", "train loss", "test accuracy (%)", "‖θ‖", and the study's
            quantities by symbol, each with the standard error of the mean, widened for few networks
            (0 for one).
    """

    optimiser: str
    weight_decay: float
    networks: int
    means: dict[str, tuple[float, float]]


def quantities(study: Study) -> list[Quantity]:
    """All that a study measures, what its figures show first; log P(f) under its first noise."""
    measured = [*(["log_prior"] if study.prior.noise else []), *study.measures]
    named = [name for name in study.figures if name in measured]
    return [_quantity(study, name) for name in dict.fromkeys([*named, *measured])]


def drawn(study: Study, records: Sequence[Record]) -> list[Quantity]:
    """What the figures of a study can show: the quantities it names that have a value anywhere."""
    values = usable(records)
    return [
        quantity
        for quantity in quantities(study)
        if quantity.name in study.figures and any(np.isfinite(quantity.of(r)[0]) for r in values)
    ]


def _quantity(study: Study, name: str) -> Quantity:
    if name != "log_prior":
        return Quantity(name, MEASURES[name].label, MEASURES[name].symbol, True)
    noise = study.prior.noise[0]
    convention = "Heaviside" if noise == 0 else f"noise {noise:g}"
    return Quantity("log_prior", f"log P(f), {convention} (nats)", "log P(f)", False)


def usable(records: Sequence[Record]) -> list[Record]:
    """Trials that reached their goal (by default, zero error) and could be measured."""
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


def decay_rows(study: Study, records: Sequence[Record]) -> list[DecayRow]:
    """A row for each optimiser and weight decay; none where the grid has no weight decays.

    A Hessian says little without the loss and the accuracy at which it was taken: granziol2020's
    effect needs networks that all fit their data.
    """
    rows = []
    for optimiser, own in by_optimiser(study, usable(records)).items():
        for decay in study.grid.weight_decay or ():
            chosen = [r for r in own if r.trial.optimiser["weight_decay"] == decay]
            results = [r.result for r in chosen]
            columns = {
                "train accuracy (%)": [100 * (1 - r["train_error"]) for r in results],
                "train loss": [r["train_loss"] for r in results],
                "test accuracy (%)": [100 * (1 - r["test_error"]) for r in results],
                "‖θ‖": [r["theta_norm"] for r in results],
            } | {q.symbol: [q.of(r)[0] for r in chosen] for q in quantities(study)}
            if chosen:
                means = {name: _mean(values) for name, values in columns.items()}
                rows.append(DecayRow(optimiser, decay, len(chosen), means))
    return rows


def _mean(values: Sequence[float]) -> tuple[float, float]:
    count = len(values)
    error = widening(count) * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else 0.0
    return float(np.mean(values)), error
