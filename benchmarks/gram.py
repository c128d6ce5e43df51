"""The exact Gauss-Newton spectrum at its largest size: seconds, peak memory, agreement.

    PLANIMETER_DATA=... python benchmarks/gram.py csinva_lenet5_mnist.pth  # half an hour on 2 cores
    PLANIMETER_DATA=... python benchmarks/gram.py csinva_lenet5_mnist.pth --rows 222 1111

A LeNet-5 on the first rows of MNIST, cross-entropy: 9 eigenvalues a row. Every size runs in a
process of its own, whose peak memory is its own. The largest eigenvalues are compared with those
of products, the trace with that of first derivatives. Prints a table; the full run writes it to
benchmarks/results/curvature/gram.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import planimeter.data
from planimeter.curvature import gauss_newton_spectrum, gauss_newton_trace, top_eigenvalues
from planimeter.landscape import LossLandscape
from planimeter.models.loading import load_model

RESULT = Path(__file__).parent / "results" / "curvature" / "gram.md"
ROWS = (222, 1111, 2222)
"""The last is 19,998 of at most 20,000 eigenvalues."""
TITLE = "All eigenvalues of a Gauss-Newton matrix"
COLUMNS = (
    "| rows | eigenvalues | Gram matrix (s) | eigenvalues (s) | peak memory | rank | trace | "
    "top 5, difference | trace, difference |\n|---|---|---|---|---|---|---|---|---|"
)


def peak() -> int:
    """The most bytes this process has held in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this system does not tell the peak memory (/proc/self/status)")


def measured(checkpoint: Path, rows: int) -> str:
    """One line of the table."""
    model = load_model("planimeter.models.mnist:lenet5", checkpoint)
    data = planimeter.data.load("mnist")
    landscape = LossLandscape(model, cross_entropy, (data.inputs[:rows], data.labels[:rows]))
    before, started = peak(), time.perf_counter()
    last = started

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != "eigenvalues":
            last = time.perf_counter()
        spent = time.perf_counter() - started
        print(f"{spent:6.0f} s: {stage} {done} of {total}", file=sys.stderr, flush=True)

    found = gauss_newton_spectrum(landscape, progress=progress)
    finished, most = time.perf_counter(), peak()
    pairs = top_eigenvalues(landscape.gauss_newton(), 5, tolerance=1e-6)
    apart = float(((found.values[:5] - pairs.values) / pairs.values).abs().max())
    trace = gauss_newton_trace(landscape).value
    return (
        f"| {rows:,} | {len(found.values):,} | {last - started:.1f} | {finished - last:.1f} | "
        f"{(most - before) / 2**30:.2f} GiB | {found.rank().value:.0f} | "
        f"{found.trace().value:.5g} | {apart:.0e} | {abs(found.trace().value / trace - 1):.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, nargs="*", default=list(ROWS))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(measured(options.checkpoint, options.one))
        return
    print(COLUMNS, flush=True)
    lines = []
    for rows in options.rows:
        command = [sys.executable, __file__, str(options.checkpoint), "--one", str(rows)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        lines.append(answer.stdout.strip())
        print(lines[-1], flush=True)
    if tuple(options.rows) == ROWS:
        text = f"# {TITLE}\n\n{head()}\n\n{COLUMNS}\n" + "\n".join(lines) + "\n"
        RESULT.write_text(text, encoding="utf-8")


def head() -> str:
    return (
        "LeNet-5 (61,706 parameters, float32) on MNIST, cross-entropy, one process a size, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads. Written by `benchmarks/gram.py`. "
        "Memory is above what the process held before. Differences are relative: of the five "
        "largest eigenvalues from those of products (`top_eigenvalues`), of the trace from "
        "`gauss_newton_trace`."
    )


if __name__ == "__main__":
    main()
