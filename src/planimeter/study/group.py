"""Trials trained side by side: which go together, and what is done for all of them at once.

A small network spends most of its training between operations, so a worker trains several as one
ensemble, and takes the sharpness of all at once. What remains is done trial by trial. A trial's
result does not depend on its group: on one thread it is the same to the last bit in any.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planimeter.ensembles import fit_ensemble, stackable
from planimeter.ensembles.flatness import keskar_sharpness_of_ensemble
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.study.training_spec import TrainingSpec
from planimeter.study.trial import (
    Start,
    Trial,
    landscape_of,
    loss_of,
    measure_trained,
    optimiser_settings,
    start_of,
)
from planimeter.training import OPTIMISERS, FitResult, make_optimiser
from planimeter.training.fitting import check_batch_size

Rows = tuple[Tensor, Tensor]

MOST = 16
"""Networks in a group: from here on a stack outgrows the processor's cache and gains no more."""

_STACKED_MODELS = frozenset({"logistic_regression", "fully_connected", "mlp"})
_STACKED_TRAINING = frozenset({"batch_size", "max_epochs"})
_SHARED_BY_SGD = ("zeta", "learning_rate", "batch_size", "epochs", "seed")


@dataclass(frozen=True)
class Trained:
    """A trained network on its way to the worker that measures it.

    Arguments:
        state: its parameters.
        fit: how training ended.
        seconds: its share of the group's training time.
        known: measures that were taken for the whole group.
    """

    state: dict[str, Tensor]
    fit: FitResult
    seconds: float
    known: dict[str, Estimate] = field(default_factory=dict)


def groups_of(trials: list[Trial], workers: int) -> list[list[Trial]]:
    """All trials in groups that can be trained side by side; the others are groups of one.

    Groups of one kind of trial are of about one size, with long and short trials in each.

    Arguments:
        trials: the longest first.
        workers: how many groups are trained at a time.
    """
    size = min(MOST, -(-len(trials) // max(workers, 1)))
    kinds: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        kinds[_kind(trial) if _can_be_stacked(trial) else trial.key].append(trial)
    groups = []
    for alike in kinds.values():
        count = -(-len(alike) // size)
        groups += [alike[start::count] for start in range(count)]
    return groups


def train_group(trials: list[Trial]) -> list[Trained | Exception]:
    """Train the networks of a group as one ensemble, and take the sharpness that they share.

    Returns:
        for each trial its network, or why it could not be started.
    """
    starts: dict[int, Start] = {}
    attacks: dict[int, Rows] = {}
    results: dict[int, Trained | Exception] = {}
    for place, trial in enumerate(trials):
        try:
            start = start_of(trial)
            attacks[place] = start.task.attack_set(trial.attack, start.attack_seed)
            rows = len(start.task.train_labels) + len(attacks[place][1])
            if _batch_size(trial) is not None:
                check_batch_size(trial.training["batch_size"], rows)
            starts[place] = start
        except InputError as error:
            results[place] = error
    if starts:
        started = time.perf_counter()
        places, begun = list(starts), list(starts.values())
        first, task = trials[places[0]], begun[0].task
        fits = fit_ensemble(
            [start.model for start in begun],
            loss_of(task),
            first.optimiser["name"],
            (task.train_inputs, task.train_labels),
            [attacks[place] for place in places],
            settings=[optimiser_settings(trials[place]) for place in places],
            batch_size=_batch_size(first),
            max_epochs=first.training["max_epochs"],
            seeds=[start.batch_seed for start in begun],
            noise_seeds=[start.noise_seed for start in begun],
        )
        seconds = time.perf_counter() - started
        sizes = [len(task.train_labels) + len(attacks[place][1]) for place in places]
        work = [fit.epochs * rows for fit, rows in zip(fits, sizes, strict=True)]
        known = _shared_measures(first, begun)
        for place, start, fit, own, measures in zip(places, begun, fits, work, known, strict=True):
            share = seconds * own / sum(work)
            results[place] = Trained(dict(start.model.state_dict()), fit, share, measures)
    return [results[place] for place in range(len(trials))]


def measure_member(
    trial: Trial, trained: Trained | Exception, weights: Path | None = None
) -> dict[str, Any]:
    """What is left to measure of one network of a group: the result of its trial.

    Raises:
        InputError: the trial could not be started.
    """
    if isinstance(trained, Exception):
        raise trained
    model = start_of(trial).model
    model.load_state_dict(trained.state)
    return measure_trained(trial, model, trained.fit, trained.seconds, weights, trained.known)


def _shared_measures(trial: Trial, starts: list[Start]) -> list[dict[str, Estimate]]:
    """Measures that cost less for all networks at once than for each, where they are finite."""
    known: list[dict[str, Estimate]] = [{} for _ in starts]
    asked = trial.measures.get("keskar_sharpness")
    if asked is None or asked.get("method") != "sgd" or asked.get("subspace") is not None:
        return known
    finite = [
        place
        for place, start in enumerate(starts)
        if all(bool(torch.isfinite(p).all()) for p in start.model.parameters())
    ]
    if not finite:
        return known
    landscapes = [landscape_of(starts[place].model, starts[place].task) for place in finite]
    settings = {name: asked[name] for name in _SHARED_BY_SGD if name in asked}
    started = time.perf_counter()
    found = keskar_sharpness_of_ensemble(landscapes, **settings)
    seconds = (time.perf_counter() - started) / len(finite)
    for place, landscape, sharpness in zip(finite, landscapes, found, strict=True):
        if sharpness is not None:
            known[place]["keskar_sharpness"] = replace(
                sharpness.as_estimate(),
                dtype=str(landscape.dtype).removeprefix("torch."),
                device=str(landscape.device),
                seconds=seconds,
            )
    return known


def _batch_size(trial: Trial) -> int | None:
    """Rows a mini-batch; None for all."""
    if OPTIMISERS[trial.optimiser["name"]].full_batch:
        return None
    size: int = trial.training["batch_size"]
    return size


def _kind(trial: Trial) -> str:
    """What trials of one group have in common."""
    shared = [trial.data, trial.model, trial.training, trial.measures, trial.optimiser["name"]]
    return json.dumps([*shared, trial.optimiser.get("inner_steps")], sort_keys=True)


def _can_be_stacked(trial: Trial) -> bool:
    """Whether `fit_ensemble` does for a trial all that its training asks for, and does it faster.

    Networks of convolutions gain nothing on a processor: their operations are large already.
    """
    usual = TrainingSpec().model_dump(mode="json")
    plain = all(
        value == usual.get(name)
        for name, value in trial.training.items()
        if name not in _STACKED_TRAINING
    )
    settings = optimiser_settings(trial)
    one = make_optimiser(trial.optimiser["name"], [torch.zeros(1)], **settings)
    return plain and trial.model["name"] in _STACKED_MODELS and stackable(one)
