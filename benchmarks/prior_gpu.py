"""log P(f) at the sizes that a GPU is for. Prints, and writes results/gpu/.

    python benchmarks/prior_gpu.py orthant 20000          # MNIST images; a float64 matrix has 8 n^2
    python benchmarks/prior_gpu.py orthant 60000          # bytes, and three are in memory at once
    python benchmarks/prior_gpu.py empirical              # ResNet-50, 7,000 CIFAR images, M = 700
    python benchmarks/prior_gpu.py sampling 1000000000    # Ctrl-C keeps what was counted

Needs PLANIMETER_DATA with mnist/ and cifar10/ (any 7,000 of its images).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from planimeter.data import load
from planimeter.models.resnet50 import resnet50
from planimeter.prior import (
    boolean_inputs,
    empirical_kernel,
    empirical_log_prior,
    fully_connected_kernel,
    log_prior,
    sample_functions,
)

RESULTS = Path(__file__).parent / "results" / "gpu"


class Stages:
    """When each stage began; prints what is done now and then."""

    def __init__(self) -> None:
        self.started = self.said = time.perf_counter()
        self.began: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage not in self.began or now - self.said > 10:
            self.said = now
            print(f"  {now - self.started:.0f} s: {stage} {done}/{total}", flush=True)
        self.began.setdefault(stage, now - self.started)

    def __str__(self) -> str:
        return ", ".join(f"{name} {at:.0f} s" for name, at in self.began.items())


def orthant(n: int) -> str:
    """All of log P(f) of MNIST, digits below 5 against the others."""
    torch.cuda.reset_peak_memory_stats()
    stages = Stages()
    mnist = load("mnist")
    x = mnist.inputs[:n].cuda()
    kernel = fully_connected_kernel(x)
    torch.cuda.synchronize()
    seconds, stages.started = time.perf_counter() - stages.started, time.perf_counter()
    found = log_prior(kernel, mnist.labels[:n] >= 5, stderr=0.3, progress=stages)
    taken = time.perf_counter() - stages.started
    return (
        f"MNIST, n = {n}, float64: log P(f) = {found}, EP {found.ep:.3f}, corrected "
        f"{found.corrected:.3f}, {found.sweeps} sweeps, {len(found.runs)} runs, alarms "
        f"{list(found.alarms)}: data and kernel {seconds:.1f} s, log P(f) {taken:.1f} s (stages "
        f"began at {stages}); peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, a matrix has "
        f"{8e-9 * n * n:.1f} GB"
    )


def empirical(n: int, networks: int) -> str:
    """The kernel of ResNet-50 on CIFAR-10 at 32 pixels, and log P(f) of classes 0-4 on it."""
    torch.cuda.reset_peak_memory_stats()
    data = load("cifar10")
    x, y = data.inputs[:n].float().cuda(), data.labels[:n] >= 5
    stages = Stages()
    kernel = empirical_kernel(
        resnet50().cuda(), x, networks=networks, batch_size=1750,
        progress=lambda done, total: stages("networks", done, total),
    )  # fmt: skip
    torch.cuda.synchronize()
    seconds = time.perf_counter() - stages.started
    found = empirical_log_prior(kernel, y, progress=stages)
    taken = time.perf_counter() - stages.started - seconds
    return (
        f"ResNet-50, {n} CIFAR-10 images of 32 pixels, M = {kernel.networks}, BatchNorm "
        f"{kernel.batch_norm}: log P(f) = {found}, {found.orthant.sweeps} sweeps, alarms "
        f"{list(found.orthant.alarms)}: kernel {seconds:.0f} s, log P(f) and jackknife "
        f"{taken:.0f} s; peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    )


def sampling(samples: int, out: Path | None) -> str:
    """The Boolean system of zhang2021's Fig. 2."""
    found = sample_functions(
        (7, 40, 40, 1), boolean_inputs(7).cuda(), samples, sigma_w=1.0, sigma_b=0.1,
        memory=1 << 33, out=out, save_every=3600, progress=Stages(),
    )  # fmt: skip
    frequent = ", ".join(f"{count:,}" for count in found.counts[:5])
    return (
        f"7-40-40-1 on 128 inputs, {found.samples:,} of {samples:,} samples: {len(found.counts):,} "
        f"functions listed, the first {found.exact_top} with exact counts, the most frequent "
        f"{frequent} times; {found.seconds:.0f} s, "
        f"{1e6 * found.seconds / found.samples:.3f} microseconds a network"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["orthant", "empirical", "sampling"])
    parser.add_argument("size", type=int, nargs="?", help="images, or samples")
    parser.add_argument("--networks", type=int, default=700)
    parser.add_argument("--out", type=Path, help=".npz file of counts, to go on with later")
    chosen = parser.parse_args()
    if chosen.what == "orthant":
        size = chosen.size or 20_000
        name, line = f"orthant-{size}", orthant(size)
    elif chosen.what == "empirical":
        name, line = "empirical", empirical(chosen.size or 7000, chosen.networks)
    else:
        name, line = "sampling", sampling(chosen.size or 10**9, chosen.out)
    print(line, flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text(
        f"`python benchmarks/prior_gpu.py {chosen.what}`, {torch.cuda.get_device_name()}, torch "
        f"{torch.__version__}\n\n{line}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
