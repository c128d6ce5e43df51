"""Loss and errors of a network on a set of rows, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from planimeter.errors import NotApplicableError
from planimeter.landscape.accuracy import predictions_of
from planimeter.landscape.denominators import known_loss
from planimeter.losses import Loss, predicted_classes
from planimeter.network.modes import evaluation_mode
from planimeter.network.running import without_graph

Rows = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
"""Inputs and labels as two tensors, or batches of them that can be iterated again and again."""

PIECE = 2**22
"""Numbers in the inputs of one piece: 5350 rows of MNIST, 1365 of CIFAR."""


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a set.

    Arguments:
        loss: mean over its rows.
        errors: labels that are wrong; all of them where targets are no classes.
        rows: labels that count, one a row of most sets.
    """

    loss: float
    errors: int
    rows: int


def evaluate(model: nn.Module, loss: Loss, data: Rows) -> Evaluation:
    """Loss and errors with the model in evaluation mode; its flags and buffers are left alone.

    Arguments:
        model: on any device; the rows follow it there.
        loss: a mean over rows; what the losses of torch divide by is known.
        data: an empty set has loss 0.
    """
    device, known = device_of(model), known_loss(loss)
    weighted = known is not None and known.of_classes and known.reduction == "mean"

    def compute() -> Evaluation:
        total, counted, wrong, rows = 0.0, 0.0, 0, 0
        for inputs, labels in pieces(data):
            labels = labels.to(device)
            outputs = model(inputs.to(device))
            weight = float(len(labels))
            if known is not None and weighted:
                weight = float(known.row_weights(labels).sum())
            total += float(loss(outputs, labels).detach()) * weight if weight else 0.0
            counted += weight
            try:
                hits = predictions_of(loss, loss, outputs.detach(), labels).hits(outputs, labels)
            except NotApplicableError:
                hits = torch.zeros(labels.numel(), dtype=torch.bool)
            wrong += hits.numel() - int(hits.sum())
            rows += hits.numel()
        return Evaluation(total / (counted or 1), wrong, rows)

    with evaluation_mode(model):
        result: Evaluation = without_graph(compute)
    return result


def function_on(model: nn.Module, inputs: Tensor) -> Int[Tensor, " n"]:
    """The class of each row, in evaluation mode, on the inputs' device."""
    device = device_of(model)

    def compute() -> Tensor:
        found = [
            predicted_classes(model(part.to(device))).to(inputs.device)
            for part in inputs.split(rows_per_piece(inputs))
        ]
        return torch.cat(found)

    with evaluation_mode(model):
        classes: Tensor = without_graph(compute)
    return classes


def pieces(data: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of a set in order, in pieces of at most `PIECE` numbers where it is tensors."""
    if isinstance(data, tuple):
        inputs, labels = data
        size = rows_per_piece(inputs)
        yield from zip(inputs.split(size), labels.split(size), strict=True)
    else:
        yield from data


def rows_per_piece(inputs: Tensor) -> int:
    """How many rows make a piece."""
    return max(1, PIECE // max(1, inputs[:1].numel()))


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters."""
    return next(model.parameters()).device
