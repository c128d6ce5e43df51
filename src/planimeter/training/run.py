"""A training run between two epochs: all that changes while it goes on, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.losses import Loss
from planimeter.network.running import one_row
from planimeter.training.averaging import Averaging, new_average
from planimeter.training.batch_norm import recompute_batch_norm
from planimeter.training.checkpoints import load_checkpoint, save_checkpoint
from planimeter.training.evaluation import Evaluation, Rows, device_of, evaluate
from planimeter.training.recording import Record, Recording
from planimeter.training.schedules import Schedule
from planimeter.training.stream import BatchStream


class Run:
    """A training run between two steps: all that changes while it goes on."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimiser: torch.optim.Optimizer,
        stream: BatchStream,
        train: Rows,
        attack: Rows | None,
        test: Rows | None,
        averaging: Averaging | None,
        schedule: Schedule,
    ) -> None:
        self.model, self.loss, self.optimiser, self.stream = model, loss, optimiser, stream
        self.train, self.attack, self.test = train, attack, test
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
            sets = [rows for rows in (self.train, self.attack) if rows is not None]
            recompute_batch_norm(self.average.module, *sets)
            self._stale = False
        return self.average.module

    def on_train(self) -> Evaluation:
        """Loss and errors on S, computed once an epoch."""
        if self.known is None:
            self.known = evaluate(self.network(), self.loss, self.train)
        return self.known

    def errors_on(self, rows: Rows | None) -> int:
        """Errors on other rows; 0 where there are none."""
        return 0 if rows is None else evaluate(self.network(), self.loss, rows).errors

    def hand_over(self) -> None:
        """Leave the network in the model."""
        network = self.network()
        if network is not self.model:
            self.model.load_state_dict(network.state_dict())
        self.model.train()

    def record(self, recording: Recording) -> None:
        """Write down what there is to see now."""
        on_train = self.on_train()
        values: dict[str, Any] = {"loss": on_train.loss, "train_errors": on_train.errors}
        for name, rows in (("attack_errors", self.attack), ("test_errors", self.test)):
            if rows is not None:
                values[name] = self.errors_on(rows)
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

    def _next_loss(self) -> Any:  # torch declares a closure that returns float, and takes a tensor
        if self._pass % self._passes == 0:
            self._batch = [(x.to(self._device), y.to(self._device)) for x, y in self.stream.take()]
        self._pass += 1
        self.optimiser.zero_grad()
        if len(self._batch) == 1:
            ((x, y),) = self._batch
            value = self.loss(self._outputs(x), y)
            value.backward()
            return value.detach()
        rows = sum(len(y) for _, y in self._batch)
        total = torch.zeros((), device=self._device)
        for x, y in self._batch:
            part = self.loss(self._outputs(x), y) * (len(y) / rows)
            part.backward()
            total = total + part.detach()
        return total

    def _outputs(self, x: Tensor) -> Any:
        try:
            return self.model(x)
        except ValueError as error:
            words = one_row(error)
            if words is None:
                raise
            raise words from error


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
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
