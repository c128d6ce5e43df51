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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.losses import Loss
from planimeter.training.averaging import Averaging, new_average, recompute_batch_norm
from planimeter.training.checkpoints import Checkpoints, load_checkpoint, save_checkpoint
from planimeter.training.evaluation import Evaluation, Rows, device_of, evaluate, rows_per_piece
from planimeter.training.recording import Intervention, Record, Recording
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
    run = _Run(
        model,
        loss,
        optimiser,
        BatchStream(source, seed, whole=batch_size is None),
        {"train": train} | ({"attack": attack} if attack is not None else {}),
        test,
        averaging,
        schedule,
    )
    with _own_random_numbers(device_of(model), seed):
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
        return run.finish()


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


class _Run:
    """A training run between two steps: all that changes while it goes on."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        stream: BatchStream,
        trained_on: dict[str, Rows],
        test: Rows | None,
        averaging: Averaging | None,
        schedule: Schedule,
    ) -> None:
        self.model, self.loss, self.optimiser, self.stream = model, loss, optimiser, stream
        self.trained_on, self.test = trained_on, test
        self.averaging, self.schedule = averaging, schedule
        self.average = new_average(model) if averaging is not None else None
        self.averaged, self._stale = 0, False
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.stop_epoch: int | None = None
        self.reason, self.diverged = "", False
        self.records: list[Record] = []
        self.known: Evaluation | None = None
        """Of S at this epoch, if anyone asked."""
        self._batch: list[tuple[Tensor, Tensor]] = []
        self._passes, self._pass = getattr(optimiser, "passes_per_batch", 1), 0
        self._device = device_of(model)
        model.train()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.stream.epochs

    def advance(self) -> float:
        """Train to the end of the next epoch, and average; the loss of the last batch."""
        before = self.epoch
        value: Any = math.nan
        while self.epoch == before:
            factor = self.schedule(before)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            value = self.optimiser.step(self._next_loss)
        self.known = None
        value = float(value)
        if (
            self.averaging is not None
            and self.average is not None
            and self.averaging.due(before, self.epoch)
            and math.isfinite(value)
        ):
            self.average.update_parameters(self.model)
            self.averaged += 1
            self._stale = True
        return value

    def network(self) -> nn.Module:
        """What the run would hand back now: the model, or the average where there is one."""
        if self.average is None or not self.averaged:
            return self.model
        if self._stale:  # a pass over the data, so only when someone looks
            recompute_batch_norm(self.average.module, *self.trained_on.values())
            self._stale = False
        return self.average.module

    def on_train(self) -> Evaluation:
        """Loss and errors on S, computed once an epoch."""
        if self.known is None:
            self.known = self.evaluate(self.trained_on["train"])
        return self.known

    def evaluate(self, rows: Rows) -> Evaluation:
        """Loss and errors on any rows."""
        return evaluate(self.network(), self.loss, rows)

    def finish(self) -> FitResult:
        """Leave the network in the model, and say how it went."""
        network = self.network()
        if network is not self.model:
            self.model.load_state_dict(network.state_dict())
        train = self.on_train()
        attack = self.evaluate(self.trained_on["attack"]).errors if self._attacked else 0
        self.model.train()
        if not self.reason:
            what = (
                f"{train.errors} of {train.rows} training rows still wrong"
                if train.errors
                else f"training loss still {train.loss:.4g}"
            )
            self.reason = f"{what} after {self.epoch} epochs"
        return FitResult(
            self.stop_epoch is not None and not self.diverged,
            self.epoch,
            train.errors,
            attack,
            self.reason,
            self.diverged,
            self.stop_epoch,
            tuple(self.records),
        )

    def record(self, recording: Recording) -> None:
        """Write down what there is to see now."""
        on_train = self.on_train()
        values: dict[str, Any] = {"loss": on_train.loss, "train_errors": on_train.errors}
        if self._attacked:
            values["attack_errors"] = self.evaluate(self.trained_on["attack"]).errors
        if self.test is not None:
            values["test_errors"] = self.evaluate(self.test).errors
        norms = [p.detach().double().norm() for p in self.network().parameters() if p.requires_grad]
        values["theta_norm"] = float(torch.stack(norms).norm())
        for hook in recording.hooks:
            values |= hook(self.network())
        after = None if self.stop_epoch is None else self.epoch - self.stop_epoch
        self.records.append(Record(self.epoch, after, values))

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        averaged = self.network() is not self.model
        state: dict[str, Any] = {
            "optimiser": self.optimiser.state_dict(),
            "kind": type(self.optimiser).__name__,
            "stream": self.stream.state(),
            "random": _random_state(self._device),
            "iterate": dict(self.model.state_dict()) if averaged else None,
            "averaged": self.averaged,
            "average_state": dict(self.average.state_dict()) if self.average is not None else None,
            "stop_epoch": self.stop_epoch,
            "reason": self.reason,
            "records": [asdict(record) for record in self.records],
        }
        save_checkpoint(folder, self.epoch, self.network().state_dict(), state)

    def restore(self, checkpoint: Path) -> None:
        """Go to where the run was when it wrote a checkpoint."""
        weights, state = load_checkpoint(checkpoint)
        if state["kind"] != type(self.optimiser).__name__ or (
            (state["average_state"] is None) != (self.average is None)
        ):
            raise InputError(
                f"the checkpoint {checkpoint} is of another training: it used {state['kind']}, "
                f"{'without' if state['average_state'] is None else 'with'} averaging"
            )
        try:
            self.model.load_state_dict(state["iterate"] or weights)
            if self.average is not None:
                self.average.load_state_dict(state["average_state"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"the checkpoint {checkpoint} is of another training: {error}"
            ) from error
        self.stream.restore(state["stream"])
        _set_random_state(self._device, state["random"])
        self.averaged, self.stop_epoch = state["averaged"], state["stop_epoch"]
        self.reason = state["reason"]
        self.records = [Record(**record) for record in state["records"]]

    @property
    def _attacked(self) -> bool:
        return "attack" in self.trained_on

    def _next_loss(self) -> Any:  # torch declares a closure that returns float, and takes a tensor
        if self._pass % self._passes == 0:
            self._batch = [(x.to(self._device), y.to(self._device)) for x, y in self.stream.take()]
        self._pass += 1
        self.optimiser.zero_grad()
        if len(self._batch) == 1:
            ((x, y),) = self._batch
            value = self.loss(self.model(x), y)
            value.backward()
            return value.detach()
        rows = sum(len(y) for _, y in self._batch)
        total = torch.zeros((), device=self._device)
        for x, y in self._batch:
            part = self.loss(self.model(x), y) * (len(y) / rows)
            part.backward()
            total = total + part.detach()
        return total


def _happen(
    run: _Run,
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


def _last(run: _Run, max_epochs: int, overtrain: int) -> bool:
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
    if batch_size is not None and batch_size > len(labels):
        raise InputError(
            f"batch_size {batch_size} is larger than the {len(labels)} rows to train on: pass at "
            f"most {len(labels)}, or None for all rows at every step"
        )
    return shuffled(inputs, labels, batch_size or rows_per_piece(inputs))


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's global generators, which dropout draws from, seeded inside and put back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
