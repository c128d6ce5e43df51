"""Cost of a Hessian product, in gradients of the same data.

Both sides run alternately in this process; the table shows medians of ratios.

    python benchmarks/products.py            # writes benchmarks/results/products.md
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from planimeter.landscape import LossLandscape

ROUNDS = 15


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def workloads() -> dict[str, tuple[torch.nn.Module, torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    nn = torch.nn
    mlp = nn.Sequential(
        nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)
    )
    cnn = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return {
        "MLP 784-40-40-2, 500 rows": (mlp, torch.rand(500, 784), torch.randint(0, 2, (500,))),
        "CNN 57k, 500 images 32x32": (
            cnn,
            torch.rand(500, 3, 32, 32),
            torch.randint(0, 10, (500,)),
        ),
    }


def main() -> None:
    lines = [
        "| workload | Hessian, graph kept | Hessian, batches recomputed | Gauss–Newton |",
        "|---|---|---|---|",
    ]
    for name, (model, x, y) in workloads().items():
        loss = torch.nn.functional.cross_entropy
        whole = LossLandscape(model, loss, (x, y))
        halves = LossLandscape(model, loss, (x, y), batch_size=len(y) // 2)
        kept, recomputed = whole.hessian(), halves.hessian()
        ggn, v = whole.gauss_newton(), torch.randn(whole.num_parameters)
        kept @ v  # builds the graph
        ratios: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            gradient = seconds(whole.gradient)
            for operator, own in zip((kept, recomputed, ggn), ratios, strict=True):
                own.append(seconds(partial(operator.__matmul__, v)) / gradient)
        cells = " | ".join(f"{statistics.median(r):.2f}" for r in ratios)
        lines.append(f"| {name} | {cells} |")
        print(lines[-1], flush=True)
    text = (
        f"# One product, in gradients of the same data\n\nMedian of {ROUNDS} alternating rounds, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads. Written by "
        f"`benchmarks/products.py`.\n\n" + "\n".join(lines) + "\n"
    )
    (Path(__file__).parent / "results" / "products.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
