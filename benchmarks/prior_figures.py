"""The figures of docs/sampling.md and docs/empirical-kernel.md.

planimeter sample 7-40-40-1 --samples 1e7 --out boolean.npz
python benchmarks/prior_figures.py boolean.npz     # about five minutes on 2 cores
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from planimeter.models.fully_connected import fully_connected
from planimeter.prior import (
    boolean_inputs,
    empirical_kernel,
    empirical_log_prior,
    fully_connected_kernel,
    gaussian_initialisation,
    log_prior,
    sample_functions,
)

DOCS = Path(__file__).parents[1] / "docs"
SIGMA_B = 0.1
NETWORKS = (10, 20, 50, 100, 200, 400)


def simplicity_bias(file: Path, samples: int) -> Figure:
    """P(f) against rank and complexity, on the Boolean system."""
    found = sample_functions(
        (7, 40, 40, 1), boolean_inputs(7), samples, sigma_w=1.0, sigma_b=0.1, out=file
    )
    many = min(int((found.counts >= 5).sum()), 50_000)
    p = found.counts[:many] / found.samples
    lower, upper = found.intervals(many)
    complexity = found.complexity(many).numpy()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    rank = np.arange(1, many + 1)
    left.fill_between(rank, lower, upper, alpha=0.3, linewidth=0)
    left.loglog(rank, p, linewidth=1)
    left.set(xlabel="rank", ylabel="P(f)", title=f"{found.samples:.0e} networks 7-40-40-1")
    right.semilogy(complexity, p, ".", markersize=2)
    r = np.corrcoef(np.log(p), complexity)[0, 1]
    right.set(
        xlabel="Lempel-Ziv complexity (bits)", ylabel="P(f)",
        title=f"seen 5 times or more: {many}, r = {r:+.2f}",
    )  # fmt: skip
    print(f"correlation of log P with complexity: {r:+.3f} over {many} functions")
    return figure


def kernel_noise(n: int = 300) -> Figure:
    """log P(f) on empirical kernels of more and more networks, with both errors and the bias."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(digits))[:n]
    unit = pixels[order] / np.linalg.norm(pixels[order], axis=1, keepdims=True)
    x, y = torch.from_numpy(8 * unit), torch.from_numpy((digits[order] >= 5).astype(int))
    exact = log_prior(fully_connected_kernel(x, sigma_b=SIGMA_B), y)
    initialise = gaussian_initialisation(2**0.5, SIGMA_B)
    figure, axis = plt.subplots(figsize=(5.5, 3.6), constrained_layout=True)
    found = []
    for networks in NETWORKS:
        kernel = empirical_kernel(
            fully_connected(64, [40, 40]).double(), x, networks=networks, sigma_b=SIGMA_B,
            initialise=initialise,
        )  # fmt: skip
        found.append(empirical_log_prior(kernel, y))
        print(f"| {networks} | {found[-1]} | {found[-1].debiased} |")
    error = [f.stderr for f in found]
    axis.axhline(exact.value, color="black", linewidth=1, label="analytic kernel")
    axis.errorbar(NETWORKS, [f.value for f in found], error, fmt="o", capsize=3, label="value")
    axis.errorbar(
        [1.08 * m for m in NETWORKS], [f.debiased.value for f in found], error, fmt="s",
        capsize=3, label="less the jackknife's bias",
    )  # fmt: skip
    axis.set(xscale="log", xlabel="networks of width 40", ylabel="log P(f)")
    axis.legend()
    print(f"analytic: {exact}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--samples", type=float, default=1e7)
    arguments = parser.parse_args()
    kernel_noise().savefig(DOCS / "kernel-noise.png", dpi=110)
    bias = simplicity_bias(arguments.file, int(arguments.samples))
    bias.savefig(DOCS / "simplicity-bias.png", dpi=110)


if __name__ == "__main__":
    main()
