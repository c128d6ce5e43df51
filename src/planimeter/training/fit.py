"""Training until the training set is all right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.losses import Loss, predicted_classes


@dataclass(frozen=True)
class FitResult:
    """How training ended.

    Arguments:
        converged: whether every row of S was classified correctly at the end.
        epochs: passes over S and A together.
        train_errors: rows of S that are wrong.
        attack_errors: rows of A that are wrong (A need not be fitted).
        reason: why it ended, in words.
    """

    converged: bool
    epochs: int
    train_errors: int
    attack_errors: int
    reason: str


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
    """Train on S and A together, until the first epoch at which S is all right.

    An optimiser that evaluates several mini-batches a step (Entropy-SGD) has its epochs counted in
    data passed, and is checked at the first step that ends an epoch.

    Arguments:
        model: trained in place.
        loss: mean over the rows of a batch.
        optimiser: over the model's parameters.
        train: S, true labels.
        attack: A, wrong labels; None or empty for none.
        batch_size: rows a mini-batch; the last one of an epoch may be smaller.
        max_epochs: give up here.
        seed: of the shuffling.
        progress: called with each epoch checked and the errors left on S.

    Returns:
        a result with `converged` False, not an exception, when zero error was not reached or the
        loss stopped being finite.

    Source: zhang2021, Section 5.2.
    """
    if max_epochs < 1 or batch_size < 1:
        raise InputError(
            f"max_epochs and batch_size must be at least 1: {max_epochs}, {batch_size}"
        )
    size = len(train[1])
    inputs, labels = train
    if attack is not None and len(attack[1]):
        inputs, labels = torch.cat([inputs, attack[0]]), torch.cat([labels, attack[1]])
    batches_per_epoch = -(-len(labels) // batch_size)
    stream = _shuffled_forever(inputs, labels, batch_size, torch.Generator().manual_seed(seed))
    consumed = 0

    def next_loss() -> Any:  # torch declares a closure that returns float, and takes a tensor
        nonlocal consumed
        x, y = next(stream)
        consumed += 1
        optimiser.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    def errors() -> tuple[int, int]:
        model.eval()
        with torch.no_grad():
            wrong = predicted_classes(model(inputs)) != labels
        model.train()
        return int(wrong[:size].sum()), int(wrong[size:].sum())

    model.train()
    epoch = 0
    while True:
        value = optimiser.step(next_loss)
        if consumed < (epoch + 1) * batches_per_epoch:
            continue
        epoch = consumed // batches_per_epoch
        wrong, attack_wrong = errors()
        progress(epoch, wrong)
        if not torch.isfinite(torch.as_tensor(value)):
            return FitResult(False, epoch, wrong, attack_wrong, f"the loss became {float(value)}")
        if wrong == 0:
            return FitResult(True, epoch, 0, attack_wrong, "zero error on the training set")
        if epoch >= max_epochs:
            reason = f"{wrong} of {size} training rows still wrong after {epoch} epochs"
            return FitResult(False, epoch, wrong, attack_wrong, reason)


def _shuffled_forever(
    inputs: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        order = torch.randperm(len(labels), generator=generator)
        x, y = inputs[order], labels[order]
        yield from zip(x.split(batch_size), y.split(batch_size), strict=True)
