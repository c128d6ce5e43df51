"""log P(f): time and memory, against EP by GPy and against itself. Prints, and writes a table.

    python benchmarks/prior_orthant.py --gpy gpy/bin/python      # about 15 minutes on 2 cores
    python benchmarks/prior_orthant.py --section 2 3             # without the peer

Section 0: EP against GPy's sequential and parallel EP (Heaviside, n = 600 and 1100). Section 1: EP,
correction and Monte Carlo together against GPy's EP alone, n = 1100. Section 2: a ladder of 11
labellings on one kernel against 11 single runs, n = 1500. Section 3: 10,000 MNIST images in a
process of its own, with its peak memory; needs PLANIMETER_DATA with mnist/. Both sides of a
comparison run alternately. requirements-prior.txt says how to get GPy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from planimeter.prior import fully_connected_kernel, log_prior, log_priors
from planimeter.prior.orthant.expectation_propagation import expectation_propagation
from planimeter.prior.orthant.log_prior import binary_signs

RESULTS = Path(__file__).parent / "results" / "prior"


def digits(n: int) -> tuple[Tensor, Tensor]:
    """The kernel of n unit-norm digits (2 hidden layers, sigma_w^2 = 2, sigma_b = 0.1), and 0-4
    against 5-9."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))[:n]
    unit = pixels[order] / np.linalg.norm(pixels[order], axis=1, keepdims=True)
    kernel = fully_connected_kernel(torch.from_numpy(8 * unit), sigma_b=0.1)
    return kernel, torch.from_numpy((labels[order] >= 5).astype(np.int64))


class GPy:
    """A process that runs GPy's EP on request."""

    def __init__(self, python: str) -> None:
        worker = Path(__file__).with_name("gpy_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, kernel: Tensor, labels: Tensor, *, parallel: bool) -> tuple[float, float]:
        """Seconds, and log Z."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, kernel=kernel.numpy(), labels=labels.numpy(), parallel=parallel)
            file.flush()
            self._process.stdin.write(file.name + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        return answer["seconds"], answer["log_z"]


def timed(call, clock=time.perf_counter) -> tuple[float, object]:
    started = clock()
    result = call()
    return clock() - started, result


def against_gpy(gpy: GPy, rounds: int) -> list[str]:
    lines = ["| n | GPy's EP | ours (s) | GPy (s) | ratio | log Z ours | GPy |", "|" + "---|" * 7]
    for n in (600, 1100):
        kernel, labels = digits(n)
        signs = binary_signs(labels)
        flipped = kernel * signs * signs[:, None]
        expectation_propagation(flipped)
        for parallel in (False, True):
            own, peer = [], []
            for _ in range(rounds):
                seconds, solution = timed(lambda k=flipped: expectation_propagation(k))
                own.append(seconds)
                seconds, log_z = gpy(kernel, labels, parallel=parallel)
                peer.append(seconds)
            ratio = statistics.median(p / o for p, o in zip(peer, own, strict=True))
            lines.append(
                f"| {n} | {'parallel' if parallel else 'sequential'} | {statistics.median(own):.2f}"
                f" | {statistics.median(peer):.1f} | {ratio:.1f} | {solution.log_z:.4f} "
                f"| {log_z:.4f} |"
            )
            print(lines[-1], flush=True)
    return lines


def whole_chain(gpy: GPy, rounds: int) -> list[str]:
    kernel, labels = digits(1100)
    own, peer = [], []
    for _ in range(rounds):
        seconds, result = timed(lambda: log_prior(kernel, labels, stderr=0.05))
        own.append(seconds)
        peer.append(gpy(kernel, labels, parallel=False)[0])
    ratio = statistics.median(p / o for p, o in zip(peer, own, strict=True))
    line = (
        f"n = 1100, all of log P: {result}, {len(result.runs)} runs: {statistics.median(own):.2f} s"
        f"; GPy's sequential EP alone {statistics.median(peer):.1f} s: ratio {ratio:.1f}"
    )
    print(line, flush=True)
    return [line]


def ladder(rounds: int) -> list[str]:
    kernel, labels = digits(1500)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(0))
    labellings = labels.repeat(11, 1)
    for step in range(11):
        wrong = order[: 50 * step]
        labellings[step, wrong] = 1 - labellings[step, wrong]
    lines = [
        "| settings | 11 singles (s) | ladder (s) | ratio | sweeps | stderr |",
        "|" + "---|" * 6,
    ]
    settings = {
        "EP with correction": {"method": "ep"},
        "defaults (8 x 1000 particles)": {},
        "4 x 500 particles": {"particles": 500, "runs": 4},
    }
    for name, options in settings.items():
        # With one thread, processor time: the same on a busy machine.
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        ratios, singles, together = [], [], []
        for _ in range(rounds):
            seconds, one = timed(
                lambda o=options: [log_prior(kernel, y, **o) for y in labellings], clock
            )
            singles.append(seconds)
            seconds, all_of_them = timed(
                lambda o=options: log_priors(kernel, labellings, **o), clock
            )
            together.append(seconds)
            ratios.append(together[-1] / singles[-1])
        sweeps = f"{sum(r.sweeps for r in one)} / {sum(r.sweeps for r in all_of_them)}"
        errors = [r.stderr for r in all_of_them]
        spread = f"{min(errors):.3f}-{max(errors):.3f}" if errors[0] == errors[0] else "none"
        lines.append(
            f"| {name} | {statistics.median(singles):.1f} | {statistics.median(together):.1f} "
            f"| {statistics.median(ratios):.2f} | {sweeps} | {spread} |"
        )
        print(lines[-1], flush=True)
    return lines


LARGE = """
import json, sys, time, torch
from planimeter.data import load
from planimeter.prior import fully_connected_kernel, log_prior
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
n, precision = int(sys.argv[1]), getattr(torch, sys.argv[2])
mnist = load("mnist")
x, y = mnist.inputs[:n], mnist.labels[:n] >= 5
marks = [("start", time.perf_counter())]
def progress(stage, done, total):
    if marks[-1][0] != stage:
        marks.append((stage, time.perf_counter()))
started = time.perf_counter()
kernel = fully_connected_kernel(x)
seconds_kernel, peak_kernel = time.perf_counter() - started, peak()
open("/proc/self/clear_refs", "w").write("5")
result = log_prior(kernel, y, precision=precision, stderr=0.3, progress=progress)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "kernel": seconds_kernel, "peak_kernel": peak_kernel,
    "peak": peak(), "cpu": time.process_time(), "result": str(result),
    "corrected": result.corrected,
    "sweeps": result.sweeps, "runs": len(result.runs), "stages":
    [[name, at - started] for name, at in marks[1:]]}))
"""


def large(n: int, precision: str) -> list[str]:
    command = [sys.executable, "-c", LARGE, str(n), precision]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    matrix = 8 * n * n
    line = (
        f"MNIST, n = {n}, {precision}: {answer['result']}, corrected {answer['corrected']:.3f}, "
        f"{answer['runs']} runs: {answer['seconds']:.0f} s in all "
        f"(kernel {answer['kernel']:.0f} s; stages began at "
        + ", ".join(f"{name} {at:.0f} s" for name, at in answer["stages"])
        + f"; processor time {answer['cpu']:.0f} s); peak {answer['peak'] / 1e9:.2f} GB in log P "
        f"and {answer['peak_kernel'] / 1e9:.2f} GB in the kernel, a float64 matrix has "
        f"{matrix / 1e9:.2f} GB"
    )
    print(line, flush=True)
    return [line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpy", help="python of an environment with GPy")
    parser.add_argument("--section", type=int, nargs="*", default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=10_000, help="images of section 3")
    parser.add_argument("--precision", default="float64", choices=["float64", "float32"])
    arguments = parser.parse_args()
    gpy = GPy(arguments.gpy) if arguments.gpy else None
    RESULTS.mkdir(parents=True, exist_ok=True)
    sections = {
        2: ("ladder", lambda: ladder(arguments.rounds)),
        3: (f"large-{arguments.large}", lambda: large(arguments.large, arguments.precision)),
    }
    if gpy is not None:
        sections |= {
            0: ("gpy", lambda: against_gpy(gpy, arguments.rounds)),
            1: ("chain", lambda: whole_chain(gpy, arguments.rounds)),
        }
    for number in sorted(set(arguments.section) & set(sections)):
        name, section = sections[number]
        threads = torch.get_num_threads()
        header = f"`python benchmarks/prior_orthant.py --section {number}`, {threads} threads\n"
        lines = section()
        (RESULTS / f"orthant-{name}.md").write_text("\n".join([header, *lines]) + "\n")


if __name__ == "__main__":
    main()
