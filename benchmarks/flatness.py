"""Flatness measures: the time of each, and two ascents against plain ones. Prints and writes.

    python benchmarks/flatness.py                  # about 15 minutes on 2 cores
    python benchmarks/flatness.py --section 0 1    # the comparisons alone

Section 0 runs adaptive worst-case sharpness (Auto-PGD) against a plain loop over parameters, as
the published implementations run it, at equal steps; section 1 Keskar's box by sign gradients
against L-BFGS-B; section 2 every measure on ResNet-20. Needs PLANIMETER_DATA with mnist/ and
cifar10/, and the checkpoints in checkpoints/ beside that folder.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workloads import workload

from planimeter.data import load
from planimeter.flatness import keskar_sharpness, measure, worst_case_sharpness
from planimeter.landscape import LossLandscape
from planimeter.models.loading import load_checkpoint
from planimeter.models.mnist import convnet

RESULTS = Path(__file__).parent / "results" / "flatness"


def mnist(rows: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The public convolutional network and training images."""
    model = convnet()
    folder = Path(os.environ["PLANIMETER_DATA"]).parent / "checkpoints"
    load_checkpoint(model, folder / "locuslab_mnist.pth")
    data = load("mnist")
    return model.eval(), data.inputs[:rows], data.labels[:rows]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def plain_auto_pgd(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: str, rho: float, m: int, steps: int, seed: int
) -> float:
    """Adaptive m-sharpness by Auto-PGD as published implementations run it.

    Parameter by parameter; after every step another forward pass gives loss and error, and the
    parameters are copied whenever the loss is the largest so far.
    """
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    parameters = list(model.parameters())
    original = [p.detach().clone() for p in parameters]
    scale = [p.abs() for p in original]
    total = 0.0

    def project(delta: list[Tensor]) -> list[Tensor]:
        if norm == "linf":
            return [d.clamp(-rho, rho) for d in delta]
        size = torch.sqrt(sum((d**2).sum() for d in delta))
        return [d * min(1.0, rho / (float(size) + 1e-12)) for d in delta]

    def place(delta: list[Tensor]) -> None:
        with torch.no_grad():
            for p, o, c, d in zip(parameters, original, scale, delta, strict=True):
                p.copy_(o + c * d)

    def direction(batch: Tensor) -> list[Tensor]:
        model.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        slope = [p.grad * c for p, c in zip(parameters, scale, strict=True)]
        if norm == "linf":
            return [g.sign() for g in slope]
        size = torch.sqrt(sum((g**2).sum() for g in slope))
        return [g / (size + 1e-12) for g in slope]

    def loss_and_error(batch: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            outputs = model(x[batch])
            wrong = (outputs.argmax(1) != y[batch]).float().mean()
            return cross_entropy(outputs, y[batch]).item(), wrong.item()

    places = [0.0, 0.22]
    while places[-1] < 1:
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    checkpoints = {-(-int(1000 * p) * steps // 1000) for p in places[1:]}
    for batch in order.split(m):
        delta = [torch.zeros_like(p) for p in original]
        place(delta)
        start, _ = loss_and_error(batch)
        best, best_state = start, copy.deepcopy(model.state_dict())
        best_delta, before, step, gained, since, previous = delta, delta, 2 * rho, 0, 0, start
        for k in range(steps):
            up = direction(batch)
            ahead = project([d + step * g for d, g in zip(delta, up, strict=True)])
            if k:
                ahead = project(
                    [
                        d + 0.75 * (a - d) + 0.25 * (d - b)
                        for d, a, b in zip(delta, ahead, before, strict=True)
                    ]
                )
            before, delta = delta, ahead
            place(delta)
            now, _ = loss_and_error(batch)
            gained += now > previous
            previous, since = now, since + 1
            if now > best:
                best, best_delta, best_state = now, delta, copy.deepcopy(model.state_dict())
            if k + 1 in checkpoints:
                if gained < 0.75 * since:
                    step /= 2
                    delta = before = best_delta
                    model.load_state_dict(best_state)
                    previous = best
                gained = since = 0
        total += (best - start) * len(batch) / len(order)
    place([torch.zeros_like(p) for p in original])
    return total


def ascents(rounds: int) -> list[str]:
    """Auto-PGD against the plain loop, 20 steps."""
    lines = []
    problems = {"MLP 784-40-40-2, 500 rows": workload("MLP"), "MNIST CNN, 1000 rows": mnist(1000)}
    for label, (model, x, y) in problems.items():
        landscape = LossLandscape(model, cross_entropy, (x, y), batch_size=len(y))
        for norm, rho in (("linf", 0.01), ("l2", 0.5)):
            ratios, values = [], (0.0, 0.0)
            plainly = partial(
                plain_auto_pgd, model, x, y, norm=norm, rho=rho, m=128, steps=20, seed=0
            )
            here = partial(worst_case_sharpness, landscape, norm=norm, radius=rho)
            for _ in range(rounds):
                slow, plain = seconds(plainly)
                fast, ours = seconds(here)
                ratios.append(slow / fast)
                values = (ours.value, float(plain))
            lines.append(
                f"| {label} | {norm} | {statistics.median(ratios):.2f} | {values[0]:.5g} | "
                f"{values[1]:.5g} |"
            )
            print(lines[-1], flush=True)
    return lines


def boxes(rounds: int) -> list[str]:
    """Keskar's box: sign gradients against L-BFGS-B."""
    lines = []
    model, x, y = mnist(2000)
    landscape = LossLandscape(model, cross_entropy, (x, y), batch_size=500)
    for zeta in (1e-4, 1e-3):
        ratios, values = [], (0.0, 0.0)
        signs = partial(keskar_sharpness, landscape, zeta=zeta)
        quasi = partial(signs, method="lbfgs", steps=200)
        for _ in range(min(rounds, 3)):
            (fast, sign), (slow, reference) = seconds(signs), seconds(quasi)
            ratios.append(fast / slow)
            values = sign.value, reference.value
        lines.append(
            f"| {zeta:g} | {values[0]:.5g} | {values[1]:.5g} | {values[0] / values[1]:.4f} | "
            f"{statistics.median(ratios):.2f} |"
        )
        print(lines[-1], flush=True)
    return lines


def everything(rounds: int) -> list[str]:
    """All measures on ResNet-20, once, with what they share counted where it is first needed."""
    model, x, y = workload("ResNet-20", 128)
    landscape = LossLandscape(model, cross_entropy, (x, y), batch_size=128)
    refused: dict[str, str] = {}
    taken, found = seconds(lambda: measure(landscape, refused=refused.__setitem__))
    lines = [f"| {n} | {e} | {e.products} | {e.seconds:.1f} |" for n, e in found.items()]
    lines += [f"| {name} | does not apply: {why} | | |" for name, why in refused.items()]
    lines.append(f"| **all** | | | {taken:.0f} |")
    print("\n".join(lines), flush=True)
    return lines


SECTIONS = (
    (
        "ascents.md",
        "Adaptive worst-case sharpness against a plain loop, 20 steps of Auto-PGD, m = 128",
        "| problem | norm | plain time / planimeter's | planimeter's value | plain value |\n"
        "|---|---|---|---|---|",
        ascents,
    ),
    (
        "boxes.md",
        "Keskar's box on the MNIST CNN, 2000 rows: sign gradients against L-BFGS-B",
        "| ζ | sign | L-BFGS-B | ratio of values | ratio of times |\n|---|---|---|---|---|",
        boxes,
    ),
    (
        "measures.md",
        "Every measure on ResNet-20's public checkpoint, 128 CIFAR-10 training images",
        "| measure | value | products | seconds |\n|---|---|---|---|",
        everything,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", type=int, nargs="*", default=list(range(len(SECTIONS))))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for number in options.section:
        file, title, columns, section = SECTIONS[number]
        print(f"\n## {title}\n\n{columns}", flush=True)
        lines = section(options.rounds)
        (RESULTS / file).write_text(
            f"# {title}\n\nWritten by `benchmarks/flatness.py`; torch {torch.__version__}, "
            f"{torch.get_num_threads()} threads.\n\n{columns}\n" + "\n".join(lines) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
