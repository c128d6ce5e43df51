"""Whether a GPU gives what the CPU gives: every kind of quantity, on both, at small sizes.

    python benchmarks/gpu_check.py               # a minute; writes results/gpu/check.md
    python benchmarks/gpu_check.py --only products

Prints the relative difference, and the seconds on the GPU (set-up of its libraries included).
Random numbers of a GPU are others than the CPU's: where a quantity draws them on the device, the
difference is in standard errors (se) instead.
"""

from __future__ import annotations

import argparse
import copy
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workloads import NAMES, workload

from planimeter.curvature import gauss_newton_spectrum, spectral_summary, top_eigenvalues
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.prior import (
    boolean_inputs,
    empirical_kernel,
    fully_connected_kernel,
    log_prior,
    log_priors,
    nngp_kernel,
    sample_functions,
)
from planimeter.products import products as products_module
from planimeter.slices import random_direction, slice_1d

RESULTS = Path(__file__).parent / "results" / "gpu"
ROWS = {"MLP": 500, "CNN": 64, "ResNet-20": 32, "transformer": 16}
Check = tuple[str, float, str]
"""What, how far apart, in which unit."""


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def landscapes(name: str, **settings: object) -> tuple[LossLandscape, LossLandscape]:
    model, x, y = workload(name, ROWS[name])
    other = copy.deepcopy(model).cuda()
    rows = {"batch_size": len(y)} | settings
    return (
        LossLandscape(model, cross_entropy, (x, y), **rows),
        LossLandscape(other, cross_entropy, (x.cuda(), y.cuda()), **rows),
    )


def products() -> Iterator[Check]:
    for name in NAMES:
        for kind in ("hessian", "gauss_newton", "empirical_fisher"):
            for products in ("auto", "recompute"):
                if kind == "empirical_fisher" and products == "recompute":
                    continue
                here, there = landscapes(name, products=products)
                one, two = getattr(here, kind)(), getattr(there, kind)()
                generator = torch.Generator().manual_seed(0)
                v = torch.randn(one.size, 16, dtype=torch.float64, generator=generator)
                single = relative(two @ v[:, 0].cuda(), one @ v[:, 0])
                again = relative(two @ v[:, 1].cuda(), one @ v[:, 1])
                for side in (one, two):
                    side.product.singles = products_module.SINGLES
                block = relative(two @ v.cuda(), one @ v)
                way = f"{two.product.strategy}"
                kept = two.product.kept
                if kept and hasattr(kept[0][1], "run"):
                    way += f", {type(kept[0][1].run).__name__}"
                way += f", blocks {[k for k, b in two.product.blocks.items() if b]}"
                yield f"{name}, {kind}, {products} ({way})", max(single, again, block), ""


def curvature() -> Iterator[Check]:
    for name in ("MLP", "CNN", "ResNet-20"):
        here, there = landscapes(name)
        found, expected = (top_eigenvalues(side.hessian(), 5) for side in (there, here))
        yield f"{name}, top 5 eigenvalues", relative(found.values, expected.values), ""
        found, expected = (spectral_summary(side.gauss_newton()) for side in (there, here))
        yield f"{name}, trace", abs(found.trace.value / expected.trace.value - 1), ""
    here, there = landscapes("MLP")
    found, expected = (gauss_newton_spectrum(side) for side in (there, here))
    yield "MLP, exact Gauss-Newton spectrum", relative(found.values, expected.values), ""


def flatness() -> Iterator[Check]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:200] / 16).float(), torch.tensor(labels[:200]).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        cross_entropy(model(x), y).backward()
        optimiser.step()
    there = LossLandscape(copy.deepcopy(model).cuda(), cross_entropy, (x.cuda(), y.cuda()))
    here = LossLandscape(model, cross_entropy, (x, y))
    expected = measure(here)
    found = measure(there)
    for name, value in found.items():
        apart = abs(value.value - expected[name].value)
        yield name, apart / max(abs(expected[name].value), 1e-12), ""
    one, two = (
        slice_1d(side, random_direction(side, seed=0), [-1.0, 0.5]) for side in (there, here)
    )
    yield "slice", relative(torch.as_tensor(one.losses), torch.as_tensor(two.losses)), ""


def prior() -> Iterator[Check]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels[:300] / 16), torch.tensor(labels[:300] >= 5)
    expected = fully_connected_kernel(x)
    kernel = fully_connected_kernel(x.cuda())
    yield "fully connected kernel", relative(kernel, expected), ""
    images = torch.randn(12, 3, 8, 8, dtype=torch.float64)
    for pooled in (False, True):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity(), nn.Flatten(),
            nn.Linear(8 if pooled else 512, 1),
        )  # fmt: skip
        one, two = nngp_kernel(net.double(), images), nngp_kernel(net.cuda(), images.cuda())
        yield f"convolutional kernel, {'pooled' if pooled else 'flat'}", relative(two, one), ""
        net.cpu()
    here = log_prior(expected, y)
    for precision in (torch.float64, torch.float32):
        there = log_prior(kernel, y, precision=precision)
        yield f"EP, {precision}", abs(there.ep - here.ep), "nats"
        yield f"corrected, {precision}", abs(there.corrected - here.corrected), "nats"
        error = (there.stderr**2 + here.stderr**2) ** 0.5
        yield f"log P(f), {precision}", abs(there.value - here.value) / error, "se"
    single = log_prior(kernel.float(), y)
    yield "corrected, float32 kernel", abs(single.corrected - here.corrected), "nats"
    flipped = y.clone()
    flipped[:20] = ~flipped[:20]
    pair = log_priors(kernel, torch.stack([y, flipped]))
    other = log_prior(expected, flipped)
    error = (pair[1].stderr ** 2 + other.stderr**2) ** 0.5
    yield "second of a ladder", abs(pair[1].value - other.value) / error, "se"
    few, own = kernel[:40, :40], y[:40]
    exact = log_prior(expected[:40, :40], own, particles=4000)
    for method in ("minimax", "direct"):
        if method == "direct":
            few, own = few[:8, :8], own[:8]
            exact = log_prior(expected[:8, :8], own, particles=4000)
        value = log_prior(few, own, method=method)
        error = (value.stderr**2 + exact.stderr**2) ** 0.5
        yield method, abs(value.value - exact.value) / error, "se"
    convnet = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 1)
    )
    small = images.float()
    one = empirical_kernel(convnet, small, networks=200)
    two = empirical_kernel(convnet.cuda(), small.cuda(), networks=200)
    error = one.groups.std(0) / 10**0.5 * 2**0.5
    apart = ((two.kernel.cpu() - one.kernel) / error).square().mean().sqrt()
    yield "empirical kernel, root mean square", float(apart), "se"


def sampling() -> Iterator[Check]:
    x = boolean_inputs(7)
    settings = {"sigma_w": 1.0, "sigma_b": 0.1, "top": 100}
    one = sample_functions((7, 40, 40, 1), x, 1_000_000, **settings)
    two = sample_functions((7, 40, 40, 1), x.cuda(), 4_000_000, seed=1, **settings)
    yield f"samples: {two.seconds:.1f} s for 4,000,000", 0.0, ""
    own = {tuple(w): c for w, c in zip(one.words.tolist(), one.counts.tolist(), strict=True)}
    worst = 0.0
    for words, count in zip(two.words[:20].tolist(), two.counts[:20].tolist(), strict=True):
        p, q = count / two.samples, own.get(tuple(words), 0) / one.samples
        worst = max(worst, abs(p - q) / (p / two.samples + p / one.samples) ** 0.5)
    yield "probabilities of the 20 most frequent functions, largest of 20", worst, "se"
    module = nn.Sequential(nn.Linear(7, 20), nn.Tanh(), nn.Linear(20, 1)).cuda()
    found = sample_functions(module, x.cuda(), 100_000, **settings)
    yield f"a module: {found.seconds:.1f} s for 100,000", 0.0, ""


def panels() -> Iterator[Check]:
    """Not a check: which width of panels suits a GPU."""
    from planimeter.prior.orthant.in_place import cholesky_, invert_lower_

    n = 16_384
    a = torch.randn(n, n, dtype=torch.float64, device="cuda")
    a = a @ a.T / n + torch.eye(n, dtype=torch.float64, device="cuda")
    for width in (128, 256, 512, 1024):
        for name, call in (("cholesky_", cholesky_), ("invert_lower_", invert_lower_)):
            times = []
            for _ in range(2):
                work = a.clone()
                if name == "invert_lower_":
                    cholesky_(work)
                torch.cuda.synchronize()
                started = time.perf_counter()
                call(work, width)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            yield f"{name}, panels of {width}", min(times), "s"
    torch.cuda.synchronize()
    started = time.perf_counter()
    torch.linalg.cholesky(a)
    torch.cuda.synchronize()
    yield "torch.linalg.cholesky", time.perf_counter() - started, "s"
    b = torch.empty_like(a)
    torch.cuda.synchronize()
    started = time.perf_counter()
    torch.mm(a, a, out=b)
    torch.cuda.synchronize()
    yield "product of two such matrices", time.perf_counter() - started, "s"


CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    panels, products, prior, sampling, curvature, flatness,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [check.__name__ for check in CHECKS]
    parser.add_argument("--only", choices=names, nargs="*", default=names)
    chosen = parser.parse_args().only
    warnings.simplefilter("always")
    lines = ["| what | difference | seconds |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    for check in CHECKS:
        if check.__name__ not in chosen:
            continue
        started = time.perf_counter()
        try:
            for what, apart, unit in check():
                taken, started = time.perf_counter() - started, time.perf_counter()
                lines.append(f"| {what} | {apart:.2g} {unit} | {taken:.1f} |")
                print(lines[-1], flush=True)
        except Exception:  # the other checks still run
            lines.append(f"| {check.__name__} | failed | |")
            traceback.print_exc()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "check.md").write_text(
        f"# GPU against CPU\n\n{torch.cuda.get_device_name()}, torch {torch.__version__}. Written "
        "by `benchmarks/gpu_check.py`.\n\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
