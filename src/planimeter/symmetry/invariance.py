r"""The audit: which flatness measures depend on how the weights are written.

Every measure is taken at the network's weights and at others that compute the same function
(verified on the data): with every layer, and every neuron, rescaled by random factors, and with
what BatchNorm's statistics absorb. A measure that changes says something about the weights, not
about the function. Besides, the logits are multiplied: the same classes with another confidence,
to which hardly any measure is blind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness import MEASURES, all_names, measure
from planimeter.flatness.registry import check_settings
from planimeter.landscape import LossLandscape
from planimeter.symmetry.audit_text import audit_text
from planimeter.symmetry.finding import find_rescalings
from planimeter.symmetry.rescalings import Rescaling, Rescalings
from planimeter.symmetry.transformed import rescaled

INVARIANT, CHANGES, CLAIMED, UNCLEAR, UNTESTED = (
    "invariant", "changes", "claimed invariant but changes", "within its error", "not tested",
)  # fmt: skip
SHOWN = 3
"""Reasons that are written out."""
SAME_FUNCTION = ("layer", "neuron", "batch_norm")
LOGITS = "logits"
HERE = "as it is"


@dataclass(frozen=True)
class Change:
    """What became of a measure when the weights were written otherwise.

    Arguments:
        value: the measure there.
        relative: (there - here) / |here|.
        error: standard error of `relative`.
        verdict: "invariant", "changes", "claimed invariant but changes", or "within its error"
            where the change is larger than the tolerance but not than three errors.
    """

    value: Estimate
    relative: float
    error: float
    verdict: str


class Reportable(list[str]):
    """Names of the measures to report, and of those that were not tested the reason."""

    def __init__(self, names: Iterable[str], untested: dict[str, str]) -> None:
        super().__init__(names)
        self.untested = untested

    def __str__(self) -> str:
        lines = [f"report: {', '.join(self)}"] if self else ["no measure was found invariant"]
        for why in dict.fromkeys(self.untested.values()):
            names = [name for name, own in self.untested.items() if own == why]
            lines.append(f"not tested ({why}): {', '.join(names)}")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Audit:
    """Measures times rescalings.

    Arguments:
        values: every measure at the weights as they are.
        changes: rescaling ("layer", "neuron", "batch_norm", "logits") to measure to its change.
        names: rescaling to the names of what was rescaled.
        absent: rescaling to the reason why the network has none of the kind.
        refused: measure to the reason why it does not apply, here or where it is rewritten.
        fixed: what in the network allows no rescaling, in words.
        factor: the factors are random within 1/factor to factor; the logits are multiplied by it.
        tolerance: relative changes up to this count as none.
        seed: of factors and measures.
    """

    values: dict[str, Estimate]
    changes: dict[str, dict[str, Change]]
    names: dict[str, tuple[str, ...]]
    absent: dict[str, str]
    refused: dict[str, str]
    fixed: tuple[str, ...]
    factor: float
    tolerance: float
    seed: int

    def verdict(self, name: str) -> str:
        """Of one measure over all rescalings that leave the function as it is.

        "not tested" where the network has none, or the measure does not apply at one of them.
        """
        kinds = self._same()
        found = [self.changes[k][name].verdict if name in self.changes[k] else "" for k in kinds]
        worst = next((v for v in (CLAIMED, CHANGES) if v in found), "")
        if worst or (found and all(found)):
            return worst or (UNCLEAR if UNCLEAR in found else INVARIANT)
        return UNTESTED

    def to_report(self) -> Reportable:
        """The measures that were invariant under every rescaling that was found.

        Where none was found, or a measure does not apply to what it gives, nothing is known of
        it: `untested` of the answer says of which measures, and why.
        """
        names = [name for name in self.values if self.verdict(name) == INVARIANT]
        untested = {n: self._why(n) for n in self.values if self.verdict(n) == UNTESTED}
        return Reportable(names, untested)

    def __str__(self) -> str:
        return audit_text(self)

    def __repr__(self) -> str:
        return f"Audit({len(self.values)} measures, {', '.join(self.changes) or 'not rewritten'})"

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "values": {name: e.as_dict() for name, e in self.values.items()},
            "changes": {
                kind: {
                    name: {
                        "value": c.value.as_dict(), "relative": c.relative, "error": c.error,
                        "verdict": c.verdict,
                    }
                    for name, c in found.items()
                }
                for kind, found in self.changes.items()
            },
            "verdicts": {name: self.verdict(name) for name in self.values},
            "rescaled": {kind: list(names) for kind, names in self.names.items()},
            "absent": self.absent,
            "refused": self.refused,
            "fixed": list(self.fixed),
            "factor": self.factor,
            "tolerance": self.tolerance,
            "seed": self.seed,
        }  # fmt: skip

    def _why(self, name: str) -> str:
        if not self._same():
            return "no rescaling was found that leaves the function as it is"
        missing = [kind for kind in self._same() if name not in self.changes[kind]]
        return f"it does not apply to the network rewritten by {' and '.join(missing)}"

    def _same(self) -> list[str]:
        return [kind for kind in SAME_FUNCTION if kind in self.changes]


def audit(
    landscape: LossLandscape,
    names: Iterable[str] | None = None,
    *,
    factor: float = 5.0,
    tolerance: float = 2e-3,
    settings: dict[str, dict[str, Any]] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Audit:
    """Measure a network as it is and rewritten, and say which measures noticed.

    Arguments:
        landscape: the network and its data.
        names: registry names; None for all but those of the Gauss-Newton matrix and the bounds.
        factor: layers and neurons are multiplied by random numbers, log-uniform within 1/factor
            to factor (what the next layer takes back); the logits by factor.
        tolerance: relative changes up to this count as none.
        settings: of individual measures, on top of their quick ones.
        seed: of factors and measures; the same for all of a measure's values.
        progress: called with the name of what runs, its steps done and their number.

    Raises:
        InputError: factor is not above 1, tolerance not positive, or a measure or
            setting is unknown.

    Source: the invariances are those of rangamani2019 and of zhang2021, Appendix F.
    """
    if not factor > 1 or not tolerance > 0:
        raise InputError(
            f"factor must be above 1 and tolerance positive, got {factor} and {tolerance}"
        )
    check_settings(settings or {})
    chosen = list(default_names() if names is None else names)
    refused: dict[str, str] = {}
    quick = {
        name: {**MEASURES[name].quick, **(settings or {}).get(name, {})}
        for name in chosen
        if name in MEASURES
    }

    def refuse(where: str, name: str, why: str) -> None:
        refused.setdefault(name, why if where == HERE else f"rewritten ({where}), {why}")

    def values_at(point: LossLandscape, where: str) -> dict[str, Estimate]:
        return measure(
            point,
            chosen if where == HERE else list(values),
            settings=quick,
            seed=seed,
            progress=lambda name, done, total: progress(f"{where}: {name}", done, total),
            refused=partial(refuse, where),
        )

    values: dict[str, Estimate] = {}
    values = values_at(landscape, HERE)
    inputs, _ = next(iter(landscape.batches()))
    found = find_rescalings(landscape.model, inputs)
    written, touched, absent = _rewritten(landscape, found, factor, seed)
    changes: dict[str, dict[str, Change]] = {}
    for kind, rewrite in written.items():
        there = values_at(rewrite(), kind)
        changes[kind] = {
            name: _change(name, kind, values[name], there[name], tolerance)
            for name in values
            if name in there
        }
    return Audit(values, changes, touched, absent, refused, found.refused, factor, tolerance, seed)


def default_names() -> list[str]:
    """The measures that an audit takes unless told otherwise."""
    return [
        name
        for name in all_names()
        if not name.startswith("gauss_newton_") and name not in ("rank_bound", "parameter_count")
    ]


def _rewritten(
    landscape: LossLandscape, found: Rescalings, factor: float, seed: int
) -> tuple[dict[str, Callable[[], LossLandscape]], dict[str, tuple[str, ...]], dict[str, str]]:
    """Ways to write the network, what each of them touches, and why others are missing."""
    generator = torch.Generator().manual_seed(seed)
    written: dict[str, Callable[[], LossLandscape]] = {}
    touched: dict[str, tuple[str, ...]] = {}
    absent: dict[str, str] = {}
    why = "; ".join(found.refused[:SHOWN]) or "no layer was seen that another one reads"
    if len(found.refused) > SHOWN:
        why += f"; and {len(found.refused) - SHOWN} more"
    for kind in SAME_FUNCTION:
        wanted = "batch_norm" if kind == "batch_norm" else "linear"
        part = [r for r in found if r.kind == wanted and _is_of(kind, r)]
        if not part:
            parts = kind == "layer" and any(r.kind == wanted for r in found)
            absent[kind] = f"none found: {'only parts of layers, see neuron; ' * parts}{why}"
            continue
        own = replace(found, found=tuple(part))
        factors = (
            own.neuron_factors(generator, factor)
            if kind == "neuron"
            else own.layer_factors(generator, factor)
        )
        touched[kind] = tuple(r.name for r in part)
        written[kind] = partial(rescaled, landscape, own, factors)
    louder = _with_louder_logits(landscape, factor)
    if isinstance(louder, str):
        absent[LOGITS] = louder
    else:
        written[LOGITS] = lambda: louder
        touched[LOGITS] = ("the last layer",)
    return written, touched, absent


def _is_of(kind: str, rescaling: Rescaling) -> bool:
    """A layer is multiplied as a whole; what has parts is left to the neurons."""
    if kind == "layer":
        return rescaling.whole
    return kind != "neuron" or rescaling.channels > 1 or not rescaling.whole


def _with_louder_logits(landscape: LossLandscape, factor: float) -> LossLandscape | str:
    """The landscape with the outputs times a factor, or why there is none."""
    layers = [
        name
        for name, module in landscape.model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
    ]
    names = [n for n in landscape.parameters if layers and n.rpartition(".")[0] == layers[-1]]
    if not names:
        return "the last layer has no parameters that are measured"
    state: dict[str, Tensor] = {n: factor * landscape.parameters[n] for n in names}
    louder = landscape.with_state(state)
    inputs, _ = next(iter(landscape.batches()))
    with torch.no_grad(), landscape.mode():
        one = landscape.outputs(landscape.parameters, inputs)
        two = louder.outputs(louder.parameters, inputs)
    by = 1.0 if landscape.normalise_logits else factor
    slack = 1e3 * torch.finfo(landscape.dtype).eps
    if float((two - by * one).norm()) > slack * by * float(one.norm()):
        return f"the outputs are not proportional to {layers[-1]!r}"
    return louder


def _change(name: str, kind: str, here: Estimate, there: Estimate, tolerance: float) -> Change:
    scale = abs(here.value)
    if scale == 0 or not math.isfinite(here.value) or not math.isfinite(there.value):
        same = here.value == there.value
        nothing = math.isnan(here.value) or math.isnan(there.value)
        relative, error = 0.0 if same else math.nan if nothing else math.inf, 0.0
    else:
        relative = (there.value - here.value) / scale
        error = math.hypot(there.stderr, here.stderr * there.value / here.value) / scale
    # What BatchNorm absorbs is the rescaling of a layer.
    claimed = ("layer" if kind == "batch_norm" else kind) in MEASURES[name].invariant_to
    # The same random numbers here and there: what is invariant mostly repeats to rounding.
    if abs(relative) <= tolerance:
        verdict = INVARIANT
    elif not abs(relative) > 3 * error:  # also where either is not known
        verdict = UNCLEAR
    else:
        verdict = CLAIMED if claimed else CHANGES
    return Change(there, relative, error, verdict)
