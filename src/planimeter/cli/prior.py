"""`planimeter prior`: log P(f) of what a trained network computes."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from planimeter.cli.network import classes, count_outputs, named_with, numbers, say_untrained
from planimeter.cli.output import (
    AsJson,
    Mean,
    Seed,
    Std,
    output,
    print_json,
    print_table,
    progress_bar,
)
from planimeter.data import binary_split, load, normalise
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.landscape import refuse_non_finite
from planimeter.losses import predicted_classes
from planimeter.models.loading import load_model
from planimeter.network.returned import Reading
from planimeter.network.running import without_graph
from planimeter.prior import (
    EmpiricalLogProbability,
    ErrorBound,
    LogProbability,
    check_kernel_exists,
    empirical_kernel,
    empirical_log_prior,
    function_error_bound,
    gaussian_initialisation,
    log_posterior,
    log_prior,
    nngp_kernel,
    posterior_error_bound,
)
from planimeter.prior.orthant.stages import METHODS

KERNELS = ("analytic", "empirical")


def prior(
    model: Annotated[str, typer.Argument(help="module:callable that makes the network.")],
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to load.")] = None,
    train: Annotated[int, typer.Option(min=1, help="|S|.")] = 300,
    test: Annotated[int, typer.Option(min=1, help="|E|.")] = 300,
    positive: Annotated[
        str | None, typer.Option(help="Classes that count as 1; default 5 to 9 of ten, 1 of two.")
    ] = None,
    in_order: Annotated[
        bool,
        typer.Option(
            "--in-order",
            help="S is the first --train rows of the data, not drawn by --seed; E the first of its "
            "test part, or the rows that follow S where it has none.",
        ),
    ] = False,
    kernel: Annotated[
        str,
        typer.Option(
            help="analytic: of infinite width (docs/kernels.md); empirical: measured on random "
            "networks, for any module with a last linear layer (docs/empirical-kernel.md)."
        ),
    ] = "analytic",
    networks: Annotated[
        int | None,
        typer.Option(min=2, help="For the empirical kernel; default a tenth of the rows."),
    ] = None,
    sigma_w: Annotated[
        float, typer.Option(help="Of the initial weights, times root fan-in.")
    ] = math.sqrt(2),
    sigma_b: Annotated[float, typer.Option(help="Of the initial biases.")] = 1.0,
    noise: Annotated[float, typer.Option(min=0.0, help="0 Heaviside, 1 probit.")] = 0.0,
    mean: Mean = None,
    std: Std = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "auto",
    particles: Annotated[int, typer.Option(min=10, help="Of the Monte Carlo, a run.")] = 1000,
    stderr: Annotated[
        float | None, typer.Option(help="Add runs until the standard error is no larger, in nats.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability that a bound fails.")] = 0.05,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """The prior probability of the function that a network computes on S and E.

    The network needs one output. S and E are drawn by the seed: for a network that you trained on
    the first rows, say --in-order. Where the network is right on all of S, the bounds on its error
    are printed beside its error on E.

    Example: planimeter prior mymodels:fcn --checkpoint fcn.pt --data mnist --train 500 --test 100
    """
    if kernel not in KERNELS:
        raise InputError(f"no kernel {kernel!r}; there are {', '.join(KERNELS)}")
    if kernel == "empirical" and (method, stderr) != ("auto", None):
        raise InputError("--method and --stderr are for the analytic kernel")
    means, stds = numbers(mean), numbers(std)
    network = load_model(model, checkpoint, seed=seed).eval()
    refuse_non_finite(dict(network.named_parameters()))
    say_untrained(model, checkpoint, seed)
    split = binary_split(
        load(data),
        train=train,
        test=test,
        positive=classes(positive),
        seed=None if in_order else seed,
    )
    inputs = normalise(torch.cat([split.train_inputs, split.test_inputs]), means, stds)
    labels = torch.cat([split.train_labels, split.test_labels])
    if (outputs := count_outputs(network, inputs, model, data)) != 1:
        raise InputError(
            f"{model} has {outputs} outputs: log P(f) is that of a binary function, of one output"
        )
    if kernel == "analytic":
        check_kernel_exists(network, inputs)  # refuse an unknown architecture before any work
    function = predict(network, inputs)
    wrong = function != labels
    fits = not bool(wrong[:train].any())
    settings: dict[str, Any] = {"particles": particles, "seed": seed}
    started = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("kernel", total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        evidence: LogProbability | None = None
        posterior: Estimate | None = None
        found: LogProbability | EmpiricalLogProbability
        if kernel == "analytic":
            matrix = nngp_kernel(
                network, inputs, sigma_w=sigma_w, sigma_b=sigma_b, progress=progress
            )
            settings["progress"] = progress
            if fits and (method, stderr) == ("auto", None):
                both = log_posterior(matrix, function, noise, train=train, **settings)
                found, evidence, posterior = both.prior, both.evidence, both.estimate()
            else:
                settings |= {"method": method, "stderr": stderr}
                found = log_prior(matrix, function, noise, **settings)
        else:
            measured = empirical_kernel(
                network,
                inputs,
                networks=networks,
                sigma_w=sigma_w,
                sigma_b=sigma_b,
                noise=noise,
                initialise=gaussian_initialisation(sigma_w, sigma_b),
                seed=seed,
                progress=partial(progress, "random networks"),
            )
            found = empirical_log_prior(measured, function, progress=progress, **settings)
    bounds = _bounds(found, evidence, train, delta) if fits else {}
    content = {
        "model": model,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "data": data,
        "train": train,
        "test": test,
        "in_order": in_order,
        "mean": means,
        "std": stds,
        "train_error": float(wrong[:train].double().mean()),
        "test_error": float(wrong[train:].double().mean()),
        "kernel": kernel,
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "log_prior": found.as_dict() | {"log10": found.value / math.log(10)},
        "log_evidence": evidence.as_dict() if evidence else None,
        "log_posterior": posterior.as_dict() if posterior else None,
        "bounds": {
            name: {**bound.estimate.as_dict(), "delta": delta, "vacuous": bound.vacuous}
            for name, bound in bounds.items()
        },
        "seed": seed,
        "seconds": time.monotonic() - started,
    }
    if as_json:
        print_json(content)
        return
    orthant = found if isinstance(found, LogProbability) else found.orthant
    named = named_with(model, checkpoint)
    print_table(
        f"{named} on {data}, S of {train} and E of {test} rows, {kernel} kernel",
        ("quantity", "value"),
        [
            ("log P(f) (nats)", str(found)),
            ("log10 P(f)", f"{found.value / math.log(10):.3f}"),
            ("EP with cumulant correction", f"{orthant.corrected:.3f}"),
            *([("log P(S) (nats)", str(evidence))] if evidence else []),
            *([("log P(f|S) (nats)", str(posterior))] if posterior else []),
            ("error on S (%)", f"{100 * float(wrong[:train].double().mean()):.2f}"),
            ("error on E (%)", f"{100 * float(wrong[train:].double().mean()):.2f}"),
            *((name, str(bound)) for name, bound in bounds.items()),
        ],
    )
    if not fits:
        output.print(
            "note: the network does not fit S: f is its labelling all the same, but the bounds "
            "are for functions without errors on S. "
            + ("S is the first rows" if in_order else f"S was drawn by --seed {seed}")
            + " of the data"
            + ("" if in_order else "; --in-order takes the first rows")
        )


def _bounds(
    found: LogProbability | EmpiricalLogProbability,
    evidence: LogProbability | None,
    train: int,
    delta: float,
) -> dict[str, ErrorBound]:
    log_p = (
        found
        if isinstance(found, LogProbability)
        else Estimate(found.value, found.stderr, dof=found.dof)
    )
    bounds = {"bound for f": function_error_bound(log_p, train, delta)}
    if evidence is not None and train > 1:
        bounds["bound for P(f|S)"] = posterior_error_bound(evidence, train, delta)
    return bounds


def predict(network: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Classes that the network gives to the inputs."""
    classes: torch.Tensor = without_graph(
        lambda: predicted_classes(Reading().given(network(inputs)))
    )
    return classes
