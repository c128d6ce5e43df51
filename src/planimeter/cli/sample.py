"""`planimeter sample`: which Boolean functions random networks compute, and how often."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from planimeter.cli.output import (
    AsJson,
    Seed,
    errors,
    output,
    print_json,
    print_wide_table,
    progress_bar,
)
from planimeter.errors import InputError
from planimeter.prior import FunctionCounts, boolean_inputs, sample_functions
from planimeter.prior.sampling.random_functions import batch_size
from planimeter.prior.sampling.sampling_file import check_sampling_path


def sample(
    network: Annotated[
        str, typer.Argument(help="Widths of a fully connected ReLU network, such as 7-40-40-1.")
    ] = "7-40-40-1",
    samples: Annotated[str, typer.Option(help="Networks to draw, such as 1e6.")] = "1e6",
    sigma_w: Annotated[
        float, typer.Option(help="Of the initial weights, times root fan-in.")
    ] = 1.0,
    sigma_b: Annotated[float, typer.Option(help="Of the initial biases.")] = 0.1,
    top: Annotated[int, typer.Option(min=1, help="Functions to show.")] = 10,
    exact: Annotated[
        int, typer.Option(min=1, help="The most frequent functions, whose counts must be exact.")
    ] = 1000,
    memory: Annotated[float, typer.Option(min=0.001, help="GiB for the table of functions.")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="Keep the counts here (.npz), and go on where they end.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """P(f) of Boolean functions, by counting what random networks compute.

    The inputs are all strings of as many bits as the first width says, as numbers 0 and 1, in
    binary order. A function is shown as its outputs, four to a hexadecimal digit. Intervals are
    Wilson's, 95 %; C is the Lempel-Ziv complexity. After Ctrl-C what was counted is shown, and
    with --out the same command, also with more --samples, does the rest.

    Example: planimeter sample 7-40-40-1 --samples 1e7 --out boolean.npz
    """
    widths, count = _widths(network), _whole_number(samples)
    if out is not None:
        check_sampling_path(out)
    with progress_bar() as bar:
        task = bar.add_task("sample", total=count)
        result = sample_functions(
            widths,
            boolean_inputs(widths[0]),
            count,
            sigma_w=sigma_w,
            sigma_b=sigma_b,
            seed=seed,
            top=max(top, exact),
            memory=int(memory * 2**30),
            threads=threads,
            out=out,
            progress=lambda stage, done, total: bar.update(
                task, description=stage, completed=done, total=total
            ),
        )
    if as_json:
        print_json(result.as_dict(top))
    else:
        _print(network, result, top)
    batch = batch_size("cpu")
    held = result.samples // batch * batch
    if out is not None and result.complete and held < result.samples:
        errors.print(
            f"{out} holds {held} of the {result.samples} samples, whole batches of {batch}; the "
            f"others are drawn again when the counts go on"
            if held
            else f"{out} is not written: it holds whole batches, of {batch} samples",
            highlight=False,
            soft_wrap=True,
        )
    if not result.complete:
        kept = f"; they are in {out}, and the same command does the rest" if out else ""
        errors.print(
            f"interrupted: {result.samples} of {result.requested} samples, "
            f"{result.exact_top} exact counts{kept}",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130)


def _print(network: str, result: FunctionCounts, top: int) -> None:
    lower, upper = result.intervals(top)
    digits = -(-result.inputs // 4)
    lines = []
    for i, (function, complexity) in enumerate(
        zip(result.functions(top), result.complexity(top), strict=True)
    ):
        bits = "".join("01"[int(bit)] for bit in function.tolist())
        count, missing = int(result.counts[i]), int(result.missing[i])
        lines.append(
            (
                f"{int(bits, 2):0{digits}x}",
                f"{count}" + (f" to {count + missing}" if missing else ""),
                f"{count / result.samples:.4g}",
                f"{float(lower[i]):.3g} to {float(upper[i]):.3g}",
                f"{float(complexity):.1f}",
            )
        )
    listed = f"{len(result.counts)} functions"
    if result.threshold:
        listed += f", and all others at most {result.threshold} times"
    s = result.settings
    print_wide_table(
        f"{network}, sigma_w {s['sigma_w']:g}, sigma_b {s['sigma_b']:g}: {result.samples} samples, "
        f"{listed}; counts of the first {result.exact_top} are exact",
        ("function", "count", "P(f)", "95 %", "C (bits)"),
        lines,
    )
    many = result.exact_top
    if len(set(result.counts[:many].tolist())) > 2:
        r = np.corrcoef(np.log(result.counts[:many]), result.complexity(many).numpy())[0, 1]
        output.print(f"correlation of log P with C over these {many}: {r:+.2f}", highlight=False)


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split("-")]
    except ValueError:
        raise InputError(f"{text!r} is not a list of widths such as 7-40-40-1") from None


def _whole_number(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (1 <= number < 1e15 and number == int(number)):
        raise InputError(f"--samples is a whole number such as 1000000 or 1e6, got {text!r}")
    return int(number)
