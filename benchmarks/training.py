"""Many small networks: planimeter's ensembles against a plain PyTorch loop, one network at a time.

Two processes of one thread each, as many as a machine with two cores has. In each, both sides take
turns, and the ratio of their CPU times is what is reported: the machine may be shared.

    python benchmarks/training.py [--networks 32] [--rows 1000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from planimeter.ensembles.fit import fit_ensemble
from planimeter.losses import binary_cross_entropy
from planimeter.models.fully_connected import fully_connected

RESULTS = Path(__file__).parent / "results" / "training"
OPTIMISERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.01}),
    "momentum": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.001}),
}
EPOCHS = 20


def task(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random labels: nothing is learnt within these epochs, so every network takes all of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(rows, 784, generator=generator)
    return inputs, torch.randint(0, 2, (rows,), generator=generator)


def plain(kind: str, networks: int, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The loop that one writes: seconds of CPU a step of one network."""
    make, settings = OPTIMISERS[kind]
    targets, loss = labels.float(), torch.nn.BCEWithLogitsLoss()
    steps, started = 0, time.process_time()
    for seed in range(networks):
        net = fully_connected(784, seed=seed)
        optimiser = make(net.parameters(), **settings)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(labels), generator=generator).split(32):
                optimiser.zero_grad()
                loss(net(inputs[rows])[:, 0], targets[rows]).backward()
                optimiser.step()
                steps += 1
            with torch.no_grad():
                if not bool(((net(inputs)[:, 0] > 0) != labels).any()):
                    break
    return (time.process_time() - started) / steps


def ensemble(kind: str, networks: int, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The same by `fit_ensemble`."""
    make, settings = OPTIMISERS[kind]
    started = time.process_time()
    results = fit_ensemble(
        [fully_connected(784, seed=seed) for seed in range(networks)],
        binary_cross_entropy,
        make,
        (inputs, labels),
        settings=settings,
        seeds=range(networks),
        max_epochs=EPOCHS,
    )
    steps = sum(r.epochs * -(-len(labels) // 32) for r in results)
    return (time.process_time() - started) / steps


def one_core(kind: str, networks: int, rows: int, rounds: int) -> list[tuple[float, float]]:
    """CPU seconds a step and network of both sides, taking turns."""
    torch.set_num_threads(1)
    inputs, labels = task(rows)
    few = max(1, networks // 8)  # one at a time, so each costs the same
    return [
        (plain(kind, few, inputs, labels), ensemble(kind, networks, inputs, labels))
        for _ in range(rounds)
    ]


def main() -> None:
    """Print the table and write it to benchmarks/results/training/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=32)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--optimisers", nargs="+", default=list(OPTIMISERS), choices=OPTIMISERS)
    options = parser.parse_args()
    share = options.networks // options.cores
    lines = [
        f"# Training 784-40-40-1, batch 32, {options.networks} networks on {options.cores} cores",
        "",
        f"`benchmarks/training.py`, torch {torch.__version__}. {options.cores} processes of one "
        "thread: a plain PyTorch loop trains one network at a time in each, `fit_ensemble` "
        f"{share} side by side. CPU time, both sides in turns, medians of {options.rounds} rounds "
        "(in brackets: the smallest and largest ratio of a round).",
        "",
        "| rows | optimiser | plain loop, µs a step | ensemble, µs a step and network | ratio |",
        "|---|---|---|---|---|",
    ]
    with ProcessPoolExecutor(options.cores, mp_context=get_context("spawn")) as pool:
        for rows in options.rows:
            for kind in options.optimisers:
                jobs = [
                    pool.submit(one_core, kind, share, rows, options.rounds)
                    for _ in range(options.cores)
                ]
                pairs = [pair for job in jobs for pair in job.result()]
                one, many = (statistics.median(side) for side in zip(*pairs, strict=True))
                ratios = [a / b for a, b in pairs]
                lines.append(
                    f"| {rows} | {kind} | {one * 1e6:.0f} | {many * 1e6:.0f} | "
                    f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f}) |"
                )
                print(lines[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "ensembles.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
