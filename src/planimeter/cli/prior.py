"""`planimeter prior`: log P(f) of what a trained network computes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from planimeter.cli.output import (
    AsJson,
    Mean,
    Seed,
    Std,
    errors,
    output,
    print_json,
    print_table,
    progress_bar,
)
from planimeter.data import binary_split, load, normalise
from planimeter.landscape import refuse_non_finite
from planimeter.losses import predicted_classes
from planimeter.models.loading import load_model
from planimeter.prior import check_kernel_exists, log_prior, nngp_kernel


def prior(
    model: Annotated[str, typer.Argument(help="module:callable that makes the network.")],
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.")] = None,
    train: Annotated[int, typer.Option(min=1, help="|S|.")] = 300,
    test: Annotated[int, typer.Option(min=1, help="|E|.")] = 300,
    positive: Annotated[
        str | None, typer.Option(help="Classes that count as 1; default 5 to 9 of ten, 1 of two.")
    ] = None,
    sigma_w: Annotated[
        float, typer.Option(help="Of the initial weights, times root fan-in.")
    ] = math.sqrt(2),
    sigma_b: Annotated[float, typer.Option(help="Of the initial biases.")] = 1.0,
    noise: Annotated[float, typer.Option(min=0.0, help="0 Heaviside, 1 probit.")] = 0.0,
    mean: Mean = None,
    std: Std = None,
    particles: Annotated[int, typer.Option(min=10, help="Of the Monte Carlo, a run.")] = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The prior probability of the function that a network computes on S and E.

    The network needs one output, and layers whose infinite-width kernel is known (docs/kernels.md).
    S and E are chosen by the seed.

    Example: planimeter prior mymodels:fcn --checkpoint fcn.pt --data mnist --train 500 --test 100
    """
    means, stds = numbers(mean), numbers(std)
    network = load_model(model, checkpoint, seed=seed).eval()
    refuse_non_finite(dict(network.named_parameters()))
    say_untrained(model, checkpoint, seed)
    split = binary_split(load(data), train=train, test=test, positive=classes(positive), seed=seed)
    inputs = normalise(torch.cat([split.train_inputs, split.test_inputs]), means, stds)
    labels = torch.cat([split.train_labels, split.test_labels])
    check_kernel_exists(network, inputs)  # refuse an unknown architecture before any work
    function = predict(network, inputs)
    wrong = function != labels
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("kernel", total=None)
        kernel = nngp_kernel(network, inputs, sigma_w=sigma_w, sigma_b=sigma_b)
        result = log_prior(
            kernel,
            function,
            noise,
            particles=particles,
            seed=seed,
            progress=lambda stage, done, total: bar.update(
                task, description=stage, completed=done, total=total
            ),
        )
    content = {
        "model": model,
        "data": data,
        "train": train,
        "test": test,
        "mean": means,
        "std": stds,
        "train_error": float(wrong[:train].double().mean()),
        "test_error": float(wrong[train:].double().mean()),
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "log_prior": result.as_dict() | {"log10": result.log10},
        "seed": seed,
        "seconds": time.monotonic() - started,
    }
    if as_json:
        print_json(content)
        return
    print_table(
        f"{model} on {data}, S of {train} and E of {test} rows",
        ("quantity", "value"),
        [
            ("log P(f) (nats)", str(result)),
            ("log10 P(f)", f"{result.log10:.3f}"),
            ("EP with cumulant correction", f"{result.corrected:.3f}"),
            ("error on S (%)", f"{100 * float(wrong[:train].double().mean()):.2f}"),
            ("error on E (%)", f"{100 * float(wrong[train:].double().mean()):.2f}"),
        ],
    )
    if content["train_error"]:
        output.print("note: the network does not fit S: f is its labelling all the same")


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


def predict(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Classes that the network gives to the inputs."""
    with torch.no_grad():
        return predicted_classes(network(inputs))
