"""One trial of a study: train a network to zero error, then measure it.

A trial is plain data, so it travels to any worker, and its key is a hash of all that determines
its result: two studies that ask for the same trial ask for the same key.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planimeter.data import Split
from planimeter.estimate import Estimate
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy, predicted_classes
from planimeter.models.registry import build_model
from planimeter.prior import log_prior, nngp_kernel
from planimeter.study.data_spec import DataSpec
from planimeter.study.spec import Study
from planimeter.training import FitResult, fit_to_zero_error, make_optimiser

# Raise this when a change of code changes the results of trials: old records then do not count.
RESULT_VERSION = 3


@dataclass(frozen=True)
class Trial:
    """One point of a study's grid, with everything that determines its result.

    Arguments:
        data, model, training, optimiser, measures, prior: sections of the study, as plain data.
        attack: |A|.
        repetition: 0, 1, ...
        seed: of the study.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    optimiser: dict[str, Any]
    measures: dict[str, dict[str, Any]]
    prior: dict[str, Any]
    attack: int
    repetition: int
    seed: int

    @property
    def key(self) -> str:
        """Hash of the trial: 16 hexadecimal digits."""
        content = json.dumps({"version": RESULT_VERSION} | asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """For people: `sgd |A|=50 #2`."""
        return f"{self.optimiser['name']} |A|={self.attack} #{self.repetition}"


def trials_of(study: Study) -> list[Trial]:
    """All trials of a study, the ones that take longest (the largest attack sets) first."""
    plain = study.model_dump(mode="json")
    shared = {
        name: plain[name] for name in ("data", "model", "training", "measures", "prior", "seed")
    }
    return [
        Trial(**shared, optimiser=optimiser, attack=attack, repetition=repetition)
        for attack in sorted(study.grid.attack, reverse=True)
        for optimiser in plain["grid"]["optimisers"]
        for repetition in range(study.grid.repetitions)
    ]


@dataclass(frozen=True)
class Start:
    """A trial before its training: all that its seeds decide.

    Arguments:
        model: with its initial weights.
        train, attack: S and A.
        batch_seed: of the shuffling.
        noise_seed: of an optimiser's noise.
    """

    model: torch.nn.Module
    train: tuple[Tensor, Tensor]
    attack: tuple[Tensor, Tensor]
    batch_seed: int
    noise_seed: int


def start_of(trial: Trial) -> Start:
    """The network and the data that a trial's training starts from.

    Seeds of the initial weights, the attack set and the shuffling come from (seed, attack size,
    repetition), so that all optimisers start from the same networks and attack sets.

    Raises:
        InputError: the attack set is larger than its pool.
    """
    init_seed, attack_seed, batch_seed, noise_seed = (
        int(s)
        for s in np.random.SeedSequence(
            [trial.seed, trial.attack, trial.repetition]
        ).generate_state(4)
    )
    if trial.data.get("ladder"):  # sets of all sizes from one seed contain one another
        ladder = np.random.SeedSequence([trial.seed, 0, trial.repetition])
        attack_seed = int(ladder.generate_state(2)[1])
    split = _split(json.dumps(trial.data, sort_keys=True))
    model = build_model(
        input_shape=split.train_inputs.shape[1:], outputs=1, seed=init_seed, **trial.model
    )
    return Start(
        model,
        (split.train_inputs, split.train_labels),
        split.attack_set(trial.attack, attack_seed),
        batch_seed,
        noise_seed,
    )


def optimiser_settings(trial: Trial) -> dict[str, Any]:
    """The settings of a trial's optimiser, without its name."""
    return {name: value for name, value in trial.optimiser.items() if name != "name"}


def run_trial(trial: Trial, weights: Path | None = None) -> dict[str, Any]:
    """Train, measure and return the result as plain JSON values.

    Arguments:
        trial: what to do.
        weights: folder for the trained weights (safetensors, named by the key); None to drop them.

    Returns:
        what `measure_trained` returns.
    """
    started = time.perf_counter()
    start = start_of(trial)
    optimiser = make_optimiser(
        trial.optimiser["name"],
        start.model.parameters(),
        seed=start.noise_seed,
        **optimiser_settings(trial),
    )
    fit = fit_to_zero_error(
        start.model,
        binary_cross_entropy,
        optimiser,
        start.train,
        start.attack,
        batch_size=trial.training["batch_size"],
        max_epochs=trial.training["max_epochs"],
        seed=start.batch_seed,
    )
    return measure_trained(trial, start.model, fit, time.perf_counter() - started, weights)


def measure_trained(
    trial: Trial,
    model: torch.nn.Module,
    fit: FitResult,
    train_seconds: float,
    weights: Path | None = None,
    known: dict[str, Estimate] | None = None,
) -> dict[str, Any]:
    """Measure a trial's trained network, and return the result as plain JSON values.

    Arguments:
        trial: what was trained.
        model: the network.
        fit, train_seconds: how its training ended, and how long it took.
        weights: folder for the weights; None to drop them.
        known: measures that were taken already.

    Returns:
        errors, losses and norms of the trained network, `fit` (how training ended), `measures` and
        `log_prior` (one entry a noise convention). A network that did not reach zero error is
        measured all the same and carries `fit.converged` False.
    """
    started = time.perf_counter()
    if weights is not None:
        _save(model, weights / f"{trial.key}.safetensors")
    result: dict[str, Any] = {"fit": asdict(fit), "train_seconds": train_seconds}
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return result | {"measures": {}, "log_prior": []}  # diverged: nothing left to measure

    split = _split(json.dumps(trial.data, sort_keys=True))
    landscape = landscape_of(model, (split.train_inputs, split.train_labels))
    everything = torch.cat([split.train_inputs, split.test_inputs])
    with torch.no_grad():
        function = predicted_classes(model.eval()(everything))
    test_labels = function[len(split.train_labels) :]
    known = known or {}
    wanted = {name: own for name, own in trial.measures.items() if name not in known}
    measures = known | (measure(landscape, wanted, settings=wanted) if wanted else {})
    what = json.dumps(trial.data, sort_keys=True), json.dumps(trial.model, sort_keys=True)
    settings = {name: trial.prior[name] for name in ("particles", "runs")}
    priors = [
        log_prior(_kernel(*what), function, noise, **settings) for noise in trial.prior["noise"]
    ]
    return result | {
        "test_error": float((test_labels != split.test_labels).double().mean()),
        "train_loss": landscape.loss(),
        "theta_norm": float(landscape.theta.norm()),
        "measures": {
            name: _repeatable(measures[name]) for name in trial.measures if name in measures
        },
        "log_prior": [p.as_dict() for p in priors],
        "measure_seconds": time.perf_counter() - started,
    }


def landscape_of(model: torch.nn.Module, train: tuple[Tensor, Tensor]) -> LossLandscape:
    """The landscape in which a trained network is measured: S alone, without A."""
    # No clock decides how products are computed: a trial repeats to the last bit.
    return LossLandscape(model, binary_cross_entropy, train, products="tape")


@lru_cache(maxsize=4)
def _split(data: str) -> Split:
    return DataSpec.model_validate_json(data).split()


@lru_cache(maxsize=2)
def _kernel(data: str, model: str) -> Tensor:
    """The kernel of S and E in this order, shared by all trials of a worker."""
    spec, split = json.loads(model), _split(data)
    inputs = torch.cat([split.train_inputs, split.test_inputs])
    network = build_model(input_shape=inputs.shape[1:], outputs=1, **spec)
    return nngp_kernel(network, inputs, sigma_w=spec["sigma_w"], sigma_b=spec["sigma_b"])


def _save(model: torch.nn.Module, path: Path) -> None:
    """Weights as safetensors, moved into place when whole."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(model.state_dict(), partial)
    partial.replace(path)


def _repeatable(estimate: Estimate) -> dict[str, Any]:
    """An estimate without the time it took."""
    return {key: value for key, value in estimate.as_dict().items() if key != "seconds"}
