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
from planimeter.training import fit_to_zero_error, make_optimiser

# Raise this when a change of code changes the results of trials: old records then do not count.
RESULT_VERSION = 2


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


def run_trial(trial: Trial, weights: Path | None = None) -> dict[str, Any]:
    """Train, measure and return the result as plain JSON values.

    Seeds of the initial weights, the attack set and the shuffling come from (seed, attack size,
    repetition), so that all optimisers start from the same networks and attack sets.

    Arguments:
        trial: what to do.
        weights: folder for the trained weights (safetensors, named by the key); None to drop them.

    Returns:
        errors, losses and norms of the trained network, `fit` (how training ended), `measures` and
        `log_prior` (one entry a noise convention). A network that did not reach zero error is
        measured all the same and carries `fit.converged` False.
    """
    started = time.perf_counter()
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
    settings = {name: value for name, value in trial.optimiser.items() if name != "name"}
    optimiser = make_optimiser(
        trial.optimiser["name"], model.parameters(), seed=noise_seed, **settings
    )
    fit = fit_to_zero_error(
        model,
        binary_cross_entropy,
        optimiser,
        (split.train_inputs, split.train_labels),
        split.attack_set(trial.attack, attack_seed),
        batch_size=trial.training["batch_size"],
        max_epochs=trial.training["max_epochs"],
        seed=batch_seed,
    )
    if weights is not None:
        _save(model, weights / f"{trial.key}.safetensors")
    trained = time.perf_counter()
    result: dict[str, Any] = {"fit": asdict(fit), "train_seconds": trained - started}
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return result | {"measures": {}, "log_prior": []}  # diverged: nothing left to measure

    # No clock decides how products are computed: a trial repeats to the last bit.
    landscape = LossLandscape(
        model,
        binary_cross_entropy,
        (split.train_inputs, split.train_labels),
        products="tape",
    )
    everything = torch.cat([split.train_inputs, split.test_inputs])
    with torch.no_grad():
        function = predicted_classes(model.eval()(everything))
    test_labels = function[len(split.train_labels) :]
    measures = measure(landscape, trial.measures, settings=trial.measures)
    what = json.dumps(trial.data, sort_keys=True), json.dumps(trial.model, sort_keys=True)
    settings = {name: trial.prior[name] for name in ("particles", "runs")}
    priors = [
        log_prior(_kernel(*what), function, noise, **settings) for noise in trial.prior["noise"]
    ]
    return result | {
        "test_error": float((test_labels != split.test_labels).double().mean()),
        "train_loss": landscape.loss(),
        "theta_norm": float(landscape.theta.norm()),
        "measures": {name: _repeatable(estimate) for name, estimate in measures.items()},
        "log_prior": [p.as_dict() for p in priors],
        "measure_seconds": time.perf_counter() - trained,
    }


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
