"""One trial of a study: train a network, then measure it.

A trial is plain data, so it travels to any worker, and its key is a hash of all that determines
its result: two studies that ask for the same trial ask for the same key.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planimeter.data import Split, training_batches
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.losses import LOSSES, Loss
from planimeter.machine.memory import is_out_of_memory
from planimeter.models.registry import build_model
from planimeter.prior import (
    EmpiricalKernel,
    check_kernel_exists,
    empirical_kernel,
    empirical_log_prior,
    gaussian_initialisation,
    log_prior,
    nngp_kernel,
)
from planimeter.study.data_spec import DataSpec
from planimeter.study.spec import Study
from planimeter.study.training_spec import RecordSpec, TrainingSpec
from planimeter.symmetry import alpha_scaling
from planimeter.training import (
    OPTIMISERS,
    Checkpoints,
    FitResult,
    Hook,
    Intervention,
    Recording,
    alpha_scale,
    fit,
    function_on,
    latest_checkpoint,
    make_optimiser,
    measuring,
    save_weights,
)

# Raise this when a change of code changes the results of trials: old records then do not count.
RESULT_VERSION = 6


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
        return _key(asdict(self), RESULT_VERSION)

    @property
    def label(self) -> str:
        """For people: `sgd |A|=50 #2`, with the weight decay where there is one."""
        decay = self.optimiser.get("weight_decay", 0.0)
        return (
            f"{self.optimiser['name']}{f' wd={decay:g}' if decay else ''} |A|={self.attack} "
            f"#{self.repetition}"
        )


def is_key_of(key: str, trial: dict[str, Any]) -> bool:
    """Whether a key is that of a trial, given as plain data, in this or any earlier version."""
    return any(key == _key(trial, v) for v in range(RESULT_VERSION + 1))


def _key(trial: dict[str, Any], version: int) -> str:
    content = json.dumps({"version": version} | trial, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def trials_of(study: Study) -> list[Trial]:
    """All trials of a study, the ones that take longest (the largest attack sets) first."""
    plain = study.model_dump(mode="json")
    shared = {
        name: plain[name] for name in ("data", "model", "training", "measures", "prior", "seed")
    }
    decays: list[dict[str, float]] = [{}]
    if study.grid.weight_decay is not None:
        decays = [{"weight_decay": value} for value in study.grid.weight_decay]
    return [
        Trial(**shared, optimiser=optimiser | decay, attack=attack, repetition=repetition)
        for attack in sorted(study.grid.attack, reverse=True)
        for optimiser in plain["grid"]["optimisers"]
        for decay in decays
        for repetition in range(study.grid.repetitions)
    ]


@dataclass(frozen=True)
class Start:
    """A trial before its training: all that its seeds decide.

    Arguments:
        task: S, E and the pool of A.
        model: with its initial weights.
        attack_seed: of the choice of A.
        batch_seed: of the shuffling.
        noise_seed: of an optimiser's noise.
    """

    task: Split
    model: nn.Module
    attack_seed: int
    batch_seed: int
    noise_seed: int


def start_of(trial: Trial) -> Start:
    """The network and the data that a trial's training starts from.

    Seeds of the initial weights, the attack set and the shuffling come from (seed, attack size,
    repetition), so that all optimisers start from the same networks and attack sets.
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
    task = _split(json.dumps(trial.data, sort_keys=True))
    model = build_model(
        input_shape=task.train_inputs.shape[1:],
        outputs=_outputs(task),
        seed=init_seed,
        **trial.model,
    )
    return Start(task, model, attack_seed, batch_seed, noise_seed)


def run_trial(trial: Trial, weights: Path | None = None) -> dict[str, Any]:
    """Train, measure and return the result as plain JSON values.

    Arguments:
        trial: what to do.
        weights: folder for the trained weights (safetensors, named by the key) and for checkpoints,
            from which an interrupted trial goes on; None to keep neither.

    Returns:
        what `measure_trained` returns.
    """
    started = time.perf_counter()
    start = start_of(trial)
    fitted = _train(trial, start, weights)
    return measure_trained(trial, start.model, fitted, time.perf_counter() - started, weights)


def measure_trained(
    trial: Trial,
    model: nn.Module,
    fitted: FitResult,
    train_seconds: float,
    weights: Path | None = None,
    known: dict[str, Estimate] | None = None,
) -> dict[str, Any]:
    """Measure a trial's trained network, and return the result as plain JSON values.

    Arguments:
        trial: what was trained.
        model: the network.
        fitted, train_seconds: how its training ended, and how long it took.
        weights: folder for the weights; None to drop them.
        known: measures that were taken already.

    Returns:
        errors, losses and norms of the trained network, `fit` (how training ended, and what was
        recorded on the way), `measures` and `log_prior` (one entry a noise convention). A network
        that did not reach its goal is measured all the same and carries `fit.converged` False; one
        that diverged has `fit.diverged` True and its epoch in `fit.epochs`, and is not measured.
    """
    started = time.perf_counter()
    task = _split(json.dumps(trial.data, sort_keys=True))
    if weights is not None:
        save_weights(model, weights / f"{trial.key}.safetensors")
    result: dict[str, Any] = {"fit": asdict(fitted), "train_seconds": train_seconds}
    if fitted.diverged or not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return result | {"measures": {}, "log_prior": []}  # nothing left to measure

    landscape = landscape_of(model, task)
    wrong = function_on(model, task.test_inputs) != task.test_labels
    known = known or {}
    wanted = {name: own for name, own in trial.measures.items() if name not in known}
    measures = known | (measure(landscape, wanted, settings=wanted) if wanted else {})
    return result | {
        "train_error": fitted.train_errors / len(task.train_labels),
        "test_error": float(wrong.double().mean()),
        "train_loss": landscape.loss(),
        "theta_norm": float(landscape.theta.norm()),
        "measures": {
            name: _repeatable(measures[name]) for name in trial.measures if name in measures
        },
        "log_prior": _log_priors(trial, task, model),
        "measure_seconds": time.perf_counter() - started,
    }


def optimiser_settings(trial: Trial) -> dict[str, Any]:
    """The settings of a trial's optimiser, without its name."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in trial.optimiser.items()
        if key != "name"
    }


def _train(trial: Trial, start: Start, folder: Path | None) -> FitResult:
    """Train as the study's training section says."""
    spec = TrainingSpec.model_validate(trial.training)
    name, task, model = trial.optimiser["name"], start.task, start.model
    recording: Recording | None = None
    interventions: list[Intervention] = []
    if spec.record is not None:
        recording = Recording(spec.record.timetable, _hooks(spec.record, trial, task))
    if spec.rescale is not None:
        change = alpha_scale(
            spec.rescale.layer, spec.rescale.alpha, partial(landscape_of, task=task)
        )
        interventions.append(Intervention(spec.rescale.timetable, change))
    batches, size = None, None if OPTIMISERS[name].full_batch else spec.batch_size
    if spec.augmentation != "none":
        batches = training_batches(
            *task.with_attack_set(trial.attack, start.attack_seed),
            batch_size=spec.batch_size,
            augmentation=spec.augmentation,
        )
    checkpoints = None
    if spec.checkpoints is not None and folder is not None:
        checkpoints = Checkpoints(folder / trial.key, spec.checkpoints.timetable)
    return fit(
        model,
        loss_of(task),
        make_optimiser(
            name, model.parameters(), seed=start.noise_seed, **optimiser_settings(trial)
        ),
        (task.train_inputs, task.train_labels),
        task.attack_set(trial.attack, start.attack_seed),
        (task.test_inputs, task.test_labels),
        batches=batches,
        batch_size=size,
        stop=spec.rule,
        max_epochs=spec.max_epochs,
        overtrain=spec.overtrain,
        schedule=spec.schedule.function(spec.max_epochs),
        averaging=spec.average,
        recording=recording,
        interventions=interventions,
        checkpoints=checkpoints,
        resume=None if checkpoints is None else latest_checkpoint(checkpoints.folder),
        seed=start.batch_seed,
    )


def _hooks(record: RecordSpec, trial: Trial, task: Split) -> tuple[Hook, ...]:
    hooks: list[Hook] = []
    if record.measures:
        hooks.append(measuring(record.measures, partial(landscape_of, task=task)))
    if record.log_prior:
        hooks.append(lambda model: {"log_prior": _log_priors(trial, task, model)})
    return tuple(hooks)


def landscape_of(model: nn.Module, task: Split) -> LossLandscape:
    """The loss over S. No clock decides how products are computed: a trial repeats to the bit."""
    rows = task.train_inputs, task.train_labels
    return LossLandscape(model, loss_of(task), rows, products="tape")


def _log_priors(trial: Trial, task: Split, model: nn.Module) -> list[dict[str, Any]]:
    """log P(f) of the labelling that a network gives S and E, under each noise convention.

    On an empirical kernel `stderr` has the error of the kernel in it.
    """
    if not trial.prior["noise"]:
        return []
    function = function_on(model, torch.cat([task.train_inputs, task.test_inputs]))
    kernel = _kernel(
        *(json.dumps(part, sort_keys=True) for part in (trial.data, trial.model, trial.prior))
    )
    settings = {name: trial.prior[name] for name in ("particles", "runs")}
    entries = []
    for noise in trial.prior["noise"]:
        if isinstance(kernel, EmpiricalKernel):
            found = empirical_log_prior(replace(kernel, noise=noise), function, **settings)
            of_kernel = {
                name: getattr(found, name)
                for name in ("stderr", "kernel_stderr", "kernel_bias", "networks")
            }
            entries.append(found.orthant.as_dict() | of_kernel)
        else:
            entries.append(log_prior(kernel, function, noise, **settings).as_dict())
    return entries


def check_trial(trial: Trial) -> None:
    """Refuse, before any work, a trial that could not be done.

    Raises:
        InputError: its network does not fit into memory, has no analytic kernel and is to have
            one, or not the layer that is to be rescaled; names what, and the way out.
    """
    try:
        start = start_of(trial)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        settings = ", ".join(f"{key} {value}" for key, value in trial.model.items())
        raise InputError(f"the network does not fit into memory: {settings}") from error
    _check_kernel(trial)
    rescale = TrainingSpec.model_validate(trial.training).rescale
    if rescale is not None:
        try:
            alpha_scaling(landscape_of(start.model, start.task), rescale.layer, rescale.alpha)
        except InputError as error:
            raise InputError(f"training.rescale: {error}") from error


def _check_kernel(trial: Trial) -> None:
    if not trial.prior["noise"] or trial.prior.get("kernel") == "empirical":
        return
    inputs = _split(json.dumps(trial.data, sort_keys=True)).train_inputs
    network = build_model(input_shape=inputs.shape[1:], outputs=1, **trial.model)
    try:
        check_kernel_exists(network.eval(), inputs[:2])
    except InputError as error:
        raise InputError(
            f"log P(f) of {trial.model['name']}: {error}; in a study set "
            f"`prior: {{kernel: empirical}}`, or `prior: null` and leave log_prior out of `figures`"
        ) from error


def _outputs(task: Split) -> int:
    return 1 if task.classes == 2 else task.classes


def loss_of(task: Split) -> Loss:
    """The loss of a task's networks: logistic for two classes, else cross-entropy."""
    return LOSSES["binary_cross_entropy" if task.classes == 2 else "cross_entropy"]


@lru_cache(maxsize=4)
def _split(data: str) -> Split:
    return DataSpec.model_validate_json(data).split()


@lru_cache(maxsize=2)
def _kernel(data: str, model: str, prior: str) -> Tensor | EmpiricalKernel:
    """The kernel of S and E in this order, shared by all trials of a worker."""
    spec, settings, task = json.loads(model), json.loads(prior), _split(data)
    inputs = torch.cat([task.train_inputs, task.test_inputs])
    network = build_model(input_shape=inputs.shape[1:], outputs=1, **spec)
    sigma_w, sigma_b = (
        next(v for v in (settings.get(name), spec.get(name), usual) if v is not None)
        for name, usual in (("sigma_w", math.sqrt(2.0)), ("sigma_b", 1.0))
    )
    if settings.get("kernel") == "empirical":
        return empirical_kernel(
            network,
            inputs,
            networks=settings.get("networks"),
            sigma_w=sigma_w,
            sigma_b=sigma_b,
            noise=min(settings["noise"]),
            initialise=gaussian_initialisation(sigma_w, sigma_b),
        )
    return nngp_kernel(network.eval(), inputs, sigma_w=sigma_w, sigma_b=sigma_b)


def _repeatable(estimate: Estimate) -> dict[str, Any]:
    """An estimate without the time it took."""
    return {key: value for key, value in estimate.as_dict().items() if key != "seconds"}
