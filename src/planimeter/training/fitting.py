"""Training a network until a goal is reached, and some epochs on.

An epoch is a pass over the training data. At the end of each, in this order: weights are averaged,
the stop rule is asked, interventions are made, records are taken, a checkpoint is written. An
optimiser that takes several mini-batches a step (Entropy-SGD) has its epochs counted in data
passed; what falls due in an epoch that ends within a step happens after that step.

The same seed gives the same network, to the last bit on one thread, also when training was
interrupted and went on from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.losses import Loss
from planimeter.training.averaging import Averaging
from planimeter.training.checkpoints import Checkpoints
from planimeter.training.evaluation import Evaluation, Rows, device_of, rows_per_piece
from planimeter.training.recording import Intervention, Record, Recording
from planimeter.training.run import Run, own_random_numbers
from planimeter.training.schedules import Schedule, constant
from planimeter.training.stopping import StopRule, zero_error
from planimeter.training.stream import BatchSource, BatchStream, shuffled


@dataclass(frozen=True)
class FitResult:
    """How training ended.

    Arguments:
        converged: whether the stop rule was met (by default, every row of S was right).
        epochs: passes over S and A together, overtraining included.
        train_errors: rows of S that are wrong at the end.
        attack_errors: rows of A that are wrong (A need not be fitted).
        reason: why it ended, in words.
        diverged: whether the loss stopped being finite, in epoch `epochs`.
        stop_epoch: the epoch at which the stop rule was met; None if it never was.
        records: what was recorded on the way.
    """

    converged: bool
    epochs: int
    train_errors: int
    attack_errors: int
    reason: str
    diverged: bool = False
    stop_epoch: int | None = None
    records: tuple[Record, ...] = ()


def fit(
    model: nn.Module,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    train: Rows,
    attack: Rows | None = None,
    test: Rows | None = None,
    *,
    batches: BatchSource | None = None,
    batch_size: int | None = 32,
    stop: StopRule = zero_error,
    max_epochs: int = 1000,
    overtrain: int = 0,
    schedule: Schedule = constant,
    averaging: Averaging | None = None,
    recording: Recording | None = None,
    interventions: Sequence[Intervention] = (),
    checkpoints: Checkpoints | None = None,
    resume: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, Evaluation | None], None] = lambda epoch, on_train: None,
) -> FitResult:
    """Train on S and A together until the stop rule is met, then `overtrain` epochs more.

    Arguments:
        model: trained in place, on its own device; with averaging it ends as the average.
        loss: mean over the rows of a batch.
        optimiser: over the model's parameters. One with an attribute `passes_per_batch` (SAM) is
            given each mini-batch as many times.
        train: S, true labels; tensors, or batches that can be iterated again (then `batches`).
        attack: A, wrong labels; None or empty for none.
        test: E; its errors are recorded.
        batches: what is trained on, where it is not simply the rows of S and A in random order:
            augmented ones, say. S, A and E are still what errors and BatchNorm statistics are of.
        batch_size: rows a mini-batch; the last one of an epoch may be smaller. None for all rows
            at every step (a large set goes through the network in pieces, whose gradients are
            added). Not used with `batches`, except None.
        stop: the goal (`planimeter.training.stopping`).
        max_epochs: give up here if the stop rule was not met.
        overtrain: epochs to go on for when it was.
        schedule: factor of the learning rate by epochs done.
        averaging: average weights from some epoch on; what is evaluated, recorded and returned is
            from then on the average, with its own BatchNorm statistics.
        recording: what to record, and when.
        interventions: changes of the network, and when.
        checkpoints: where and when to write checkpoints.
        resume: a checkpoint of the same training to go on from.
        seed: of the shuffling and of dropout. Torch's global random numbers stay untouched.
        progress: called at each epoch's end with the epochs done and, where the stop rule asked for
            it, the evaluation of S.

    Returns:
        a result with `converged` False, not an exception, when the stop rule was not met, and with
        `diverged` True when the loss stopped being finite.

    Raises:
        InputError: a number is out of its range, the batch is larger than the data, S is batches
            without a source of training batches, or the checkpoint is of another training.
    """
    if max_epochs < 1 or (batch_size is not None and batch_size < 1) or overtrain < 0:
        raise InputError(
            f"max_epochs and batch_size must be at least 1, and overtrain at least 0: "
            f"{max_epochs}, {batch_size}, {overtrain}"
        )
    attack = None if isinstance(attack, tuple) and not len(attack[1]) else attack
    source = _source(train, attack, batch_size) if batches is None else batches
    run = Run(
        model,
        loss,
        optimiser,
        BatchStream(source, seed, whole=batch_size is None),
        train,
        attack,
        test,
        averaging,
        schedule,
    )
    with own_random_numbers(device_of(model), seed):
        if resume is not None:
            run.restore(resume)
        else:
            _happen(run, recording, interventions, previous=-1)
        while run.stop_epoch is None or run.epoch < run.stop_epoch + overtrain:
            if run.stop_epoch is None and run.epoch >= max_epochs:
                break
            previous = run.epoch
            value = run.advance()
            if not math.isfinite(value):
                run.reason, run.diverged = f"the loss became {value}", True
                progress(run.epoch, None)
                break
            if run.stop_epoch is None and (reason := stop(run.epoch, run.on_train)):
                run.stop_epoch, run.reason = run.epoch, reason
            progress(run.epoch, run.known)
            _happen(run, recording, interventions, previous)
            over = run.stop_epoch == run.epoch or _last(run, max_epochs, overtrain)
            if checkpoints is not None and (
                over or checkpoints.at.due(previous, run.epoch, run.stop_epoch)
            ):
                run.save(checkpoints.folder)
        run.hand_over()
        return _result(run)


def fit_to_zero_error(
    model: nn.Module,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    train: tuple[Float[Tensor, "m ..."], Int[Tensor, " m"]],
    attack: tuple[Float[Tensor, "a ..."], Int[Tensor, " a"]] | None = None,
    *,
    batch_size: int = 32,
    max_epochs: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda epoch, errors: None,
) -> FitResult:
    """`fit` to the first epoch at which S is all right, and no further.

    Arguments:
        model, loss, optimiser, train, attack, batch_size, max_epochs, seed: as in `fit`.
        progress: called with each epoch checked and the errors left on S.

    Source: zhang2021, Section 5.2.
    """

    def report(epoch: int, on_train: Evaluation | None) -> None:
        if on_train is not None:
            progress(epoch, on_train.errors)

    return fit(
        model,
        loss,
        optimiser,
        train,
        attack,
        batch_size=batch_size,
        max_epochs=max_epochs,
        seed=seed,
        progress=report,
    )


def _result(run: Run) -> FitResult:
    train = run.on_train()
    if not math.isfinite(train.loss) and not run.diverged:  # by the very last step
        run.reason, run.diverged = f"the loss became {train.loss}", True
    what = (
        f"{train.errors} of {train.rows} training rows still wrong"
        if train.errors
        else f"training loss still {train.loss:.4g}"
    )
    return FitResult(
        run.stop_epoch is not None and not run.diverged,
        run.epoch,
        train.errors,
        run.errors_on(run.attack),
        run.reason or f"{what} after {run.epoch} epochs",
        run.diverged,
        run.stop_epoch,
        tuple(run.records),
    )


def _happen(
    run: Run,
    recording: Recording | None,
    interventions: Sequence[Intervention],
    previous: int,
) -> None:
    """What is due at the end of an epoch, or before the first."""
    for intervention in interventions:
        if intervention.at.due(previous, run.epoch, run.stop_epoch):
            intervention.change(run.model)
            run.known = None
    if recording is not None and recording.at.due(previous, run.epoch, run.stop_epoch):
        run.record(recording)


def _last(run: Run, max_epochs: int, overtrain: int) -> bool:
    end = max_epochs if run.stop_epoch is None else run.stop_epoch + overtrain
    return run.epoch >= end


def _source(train: Rows, attack: Rows | None, batch_size: int | None) -> BatchSource:
    """The rows of S and A in random order."""
    if not isinstance(train, tuple) or not isinstance(attack, tuple | None):
        raise InputError(
            "S or A is given as batches: pass `batches`, a function of a torch.Generator that "
            "gives the training batches of one epoch"
        )
    inputs, labels = train
    if attack is not None:
        inputs, labels = torch.cat([inputs, attack[0]]), torch.cat([labels, attack[1]])
    if batch_size is not None:
        check_batch_size(batch_size, len(labels))
    return shuffled(inputs, labels, batch_size or rows_per_piece(inputs))


def check_batch_size(batch_size: int, rows: int) -> None:
    """Refuse a batch that is larger than the data.

    Raises:
        InputError: it is.
    """
    if batch_size > rows:
        raise InputError(
            f"batch_size {batch_size} is larger than the {rows} rows to train on: pass at "
            f"most {rows}, or None for all rows at every step"
        )
