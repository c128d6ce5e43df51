"""What commands that look at one network share: their options, and the landscape these make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.nn.functional import mse_loss

from planimeter.cli.output import errors
from planimeter.data import binary, load, normalise
from planimeter.errors import InputError, NotApplicableError
from planimeter.landscape import LossLandscape
from planimeter.losses import LOSSES
from planimeter.models.loading import load_model
from planimeter.network import BATCH_NORM
from planimeter.network.returned import Reading, described
from planimeter.network.running import without_graph

Model = Annotated[
    str, typer.Argument(help="module:callable, or FILE.py:callable, that makes the network.")
]
Data = Annotated[str, typer.Option(help="Data set; its training part is used.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights to load.")]
Rows = Annotated[int, typer.Option(min=0, help="The first so many rows; 0 for all.")]
Positive = Annotated[
    str | None,
    typer.Option(help="Classes that count as 1, for one output; default 5 to 9 of ten, 1 of two."),
]
LossName = Annotated[str | None, typer.Option(help=f"{', '.join(LOSSES)}; default by outputs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows at a time, for memory.")]
BatchNorm = Annotated[str, typer.Option(help=f"How BatchNorm runs: {', '.join(BATCH_NORM)}.")]
NormaliseLogits = Annotated[
    bool,
    typer.Option(
        "--normalise-logits",
        help="Centre every row's logits and divide by their norm before the loss, so that their "
        "scale does not count.",
    ),
]
Float64 = Annotated[bool, typer.Option("--float64", help="Compute in double precision.")]


@dataclass(frozen=True)
class Subject:
    """A network on data, as the command line names it.

    Arguments:
        landscape: of the network.
        model, checkpoint, data: as they were given.
        loss_function: a name in LOSSES.
        means, stds: of the normalisation, a number a channel; None for none.
    """

    landscape: LossLandscape
    model: str
    checkpoint: Path | None
    data: str
    loss_function: str
    means: list[float] | None
    stds: list[float] | None

    def title(self) -> str:
        """`MODEL with CHECKPOINT on N rows of DATA`, and whether logits are normalised."""
        logits = ", logits normalised" if self.landscape.normalise_logits else ""
        named = named_with(self.model, self.checkpoint)
        return f"{named} on {self.landscape.num_rows} rows of {self.data}{logits}"

    def accuracy(self) -> float | None:
        """Fraction of rows whose class is predicted; None under a loss of numbers."""
        try:
            return self.landscape.accuracy()
        except NotApplicableError:
            return None

    def state(self, loss: float, accuracy: float | None) -> str:
        """`LOSS value, accuracy`, as titles say it."""
        right = "" if accuracy is None else f", accuracy {100 * accuracy:.2f} %"
        return f"{self.loss_function} {loss:.4g}{right}"

    def record(self) -> dict[str, Any]:
        """What every command's JSON begins with."""
        return {
            "model": self.model,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "data": self.data,
            "rows": self.landscape.num_rows,
            "mean": self.means,
            "std": self.stds,
            "parameters": self.landscape.num_parameters,
            "loss_function": self.loss_function,
        }


def subject(
    model: str,
    checkpoint: Path | None,
    data: str,
    *,
    rows: int,
    mean: str | None,
    std: str | None,
    positive: str | None,
    loss: str | None,
    batch_size: int,
    batch_norm: str,
    float64: bool,
    normalise_logits: bool,
    seed: int,
) -> Subject:
    """Load network and data, and make their landscape.

    A network with one output is put on the binary task with the logistic loss, one with several
    on the classes with the cross-entropy.

    Raises:
        InputError: something does not exist, or does not fit together; says what.
    """
    means, stds = numbers(mean), numbers(std)
    network = load_model(model, checkpoint, seed=seed)
    say_untrained(model, checkpoint, seed)
    dataset = load(data)
    count = min(rows or len(dataset.labels), len(dataset.labels))
    if count < rows:
        errors.print(f"note: {data} has {count} rows, not {rows}", style="yellow", highlight=False)
    inputs, labels = dataset.inputs[:count], dataset.labels[:count]
    if float64:
        network, inputs = network.double(), inputs.double()
    inputs = normalise(inputs, means, stds)
    outputs = count_outputs(network, inputs, model, data)
    one = outputs == 1
    if not one and outputs < dataset.classes:
        raise InputError(
            f"{model} has {outputs} outputs, {data} {dataset.classes} classes: use one output "
            f"for a binary task, or one a class"
        )
    chosen = loss or ("binary_cross_entropy" if one else "cross_entropy")
    if chosen not in LOSSES:
        raise InputError(f"no loss {chosen!r}; there are {', '.join(LOSSES)}")
    if one:
        labels = binary(dataset, classes(positive)).labels[:count]
        if LOSSES[chosen] is mse_loss:  # numbers, in the shape of the outputs
            labels = labels.to(inputs.dtype)
            row = without_graph(lambda: Reading().given(network(inputs[:1])))
            labels = labels.reshape(count, *row.shape[1:])
    landscape = LossLandscape(
        network,
        LOSSES[chosen],
        (inputs, labels),
        batch_size=batch_size,
        batch_norm=batch_norm,
        normalise_logits=normalise_logits,
    )
    return Subject(landscape, model, checkpoint, data, chosen, means, stds)


def named_with(model: str, checkpoint: Path | None) -> str:
    """A model by its reference, and the weights that it has."""
    return model if checkpoint is None else f"{model} with {checkpoint}"


def say_untrained(model: str, checkpoint: Path | None, seed: int) -> None:
    """Without a checkpoint, say whose weights are looked at."""
    if checkpoint is None:
        errors.print(
            f"note: no --checkpoint, so these are the weights that {model} makes (seed {seed})",
            style="yellow",
            highlight=False,
        )


def classes(text: str | None) -> list[str] | None:
    """`5,6,7` or `cat,dog`, one by one."""
    return None if text is None else [part.strip() for part in text.split(",")]


def numbers(text: str | None) -> list[float] | None:
    """`0.485,0.456,0.406` as numbers."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 0.5,0.5,0.5") from None


def count_outputs(network: torch.nn.Module, inputs: torch.Tensor, model: str, data: str) -> int:
    """Outputs a row, found by running one row; a misfit is an error in words."""
    network.eval()
    try:
        result = without_graph(lambda: Reading().given(network(inputs[:1])))
    except Exception as error:  # whatever the user's own code raises
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(
            f"{model} does not accept {data} inputs of shape {tuple(inputs[:1].shape)}: {lines[0]}"
        ) from error
    if not isinstance(result, torch.Tensor) or len(result) != 1:
        raise InputError(
            f"{model} returns {described(result)} for one row; a command needs one tensor of "
            f"outputs, a row each, or an object or dict with logits: use LossLandscape in Python, "
            f"with a loss that takes what it returns"
        )
    return int(result[0].numel())
