"""Curvature against the peers: products, eigenvalues, summaries, memory. Prints and writes ratios.

    python -m pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/curvature.py                      # about 20 minutes on 2 cores
    python benchmarks/curvature.py --only MLP --rounds 9
    python benchmarks/curvature.py --section 1 2 --whole    # eigenvalues, summaries: every row
    python benchmarks/curvature.py --device cuda

All sides run alternately in this process, the table shows medians of ratios, and peers that are
not installed are left out. Every section that is run on all workloads is written to its file in
benchmarks/results/curvature/ (curvature-cuda/).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peers import PEERS, Peer, quiet, version
from torch import Tensor
from torch.nn.functional import cross_entropy
from workloads import NAMES, workload

from planimeter.curvature import spectral_summary, top_eigenvalues
from planimeter.landscape import LossLandscape
from planimeter.network import evaluation_mode
from planimeter.products import products as products_module

RESULTS = Path(__file__).parent / "results"
# Whole computations run on fewer rows where one product takes seconds; without --whole.
FEWER: dict[str, int | None] = {"MLP": 500, "CNN": 64, "ResNet-20": 16, "transformer": 8}
# Memory is measured where the gradient needs enough of it to be told from everything else.
HEAVY = {"MLP": (50_000,), "CNN": (2000,), "ResNet-20": (256,), "transformer": (32, 256)}
MODES = ("gradient", "kept", "recomputed")
device = torch.device("cpu")


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def problem(name: str, rows: int | None = None) -> tuple[torch.nn.Module, Tensor, Tensor]:
    model, x, y = workload(name, rows)
    return model.to(device), x.to(device), y.to(device)


def plain_gradient(model: torch.nn.Module, x: Tensor, y: Tensor) -> None:
    with evaluation_mode(model):
        torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


def made_peers(name: str, rows: int | None = None) -> dict[str, Peer]:
    model, x, y = problem(name, rows)
    found: dict[str, Peer] = {}
    for kind in PEERS:
        if version(kind) == "not installed":
            continue
        try:
            peer = kind(model, x, y, batch_size=len(y))
            with evaluation_mode(peer.model):
                peer.product(torch.zeros(sum(peer.sizes), device=device))
            found[kind.name] = peer
        except Exception as error:  # whatever a peer raises
            print(f"  {kind.name} fails on {name}: {str(error).splitlines()[0][:90]}")
    return found


def products(name: str, rounds: int) -> list[str]:
    """One product, in gradients of the same data."""
    model, x, y = problem(name)
    landscapes = {
        "planimeter, kept": LossLandscape(model, cross_entropy, (x, y), batch_size=len(y)),
        "planimeter, recomputed": LossLandscape(
            model, cross_entropy, (x, y), batch_size=len(y), products="recompute"
        ),
    }
    size = landscapes["planimeter, kept"].num_parameters
    v = torch.randn(size, dtype=torch.float64, device=device)
    sides: dict[str, Callable[[], object]] = {}
    for label, landscape in landscapes.items():
        hessian = landscape.hessian()
        hessian @ v  # what is kept is made here
        sides[label] = partial(hessian.__matmul__, v)
    ggn = landscapes["planimeter, kept"].gauss_newton()
    sides["planimeter, Gauss-Newton"] = partial(ggn.__matmul__, v)
    kept = landscapes["planimeter, kept"].hessian()
    block = torch.randn(size, 16, dtype=torch.float64, device=device)
    kept.product.singles = products_module.SINGLES
    kept @ block  # here it is seen whether blocks pay
    if not kept.product.blocks.get(16):
        block = block[:, :2]
    sides["planimeter, per vector of a block"] = partial(kept.__matmul__, block)
    single = v.float()
    for label, peer in made_peers(name).items():

        def peer_product(peer: Peer = peer) -> None:
            with quiet(), evaluation_mode(peer.model):
                peer.product(single)

        sides[label] = peer_product
    ratios: dict[str, list[float]] = {label: [] for label in sides}
    for round_number in range(rounds + 1):
        gradient = min(seconds(partial(plain_gradient, model, x, y)) for _ in range(2))
        for label, call in sides.items():
            repeats = 2 if gradient < 0.1 else 1
            taken = min(seconds(call) for _ in range(repeats)) / gradient
            if round_number:  # the first round warms up
                ratios[label].append(taken / block.shape[1] if label.endswith("block") else taken)
    medians = {label: statistics.median(own) for label, own in ratios.items()}
    best = min(medians["planimeter, kept"], medians["planimeter, per vector of a block"])
    return [
        f"| {name} | {label} | {median:.2f} | "
        f"{'' if label.startswith('planimeter') else f'{median / best:.2f}'} |"
        for label, median in medians.items()
    ]


def eigenvalues(name: str, rounds: int) -> list[str]:
    """The top 10 eigenvalues to 1e-3, products and time."""
    model, x, y = problem(name, FEWER[name])
    peers = {
        label: peer
        for label, peer in made_peers(name, FEWER[name]).items()
        if label == "curvlinops"
        or (name == "MLP" and label in ("hessian-eigenthings", "landscaper, cache"))
    }

    def fresh() -> LossLandscape:
        return LossLandscape(model, cross_entropy, (x, y), batch_size=len(y))

    exact = top_eigenvalues(fresh().hessian(), 10, tolerance=1e-5, max_products=600).values
    times: dict[str, list[float]] = {}
    answers: dict[str, tuple[int, list[float]]] = {}
    for _ in range(rounds):
        for label, copies in (("planimeter", True), ("planimeter, copies unseen", False)):
            landscape = fresh()
            started = time.perf_counter()
            found = top_eigenvalues(landscape.hessian(), 10, tolerance=1e-3, multiplicities=copies)
            times.setdefault(label, []).append(time.perf_counter() - started)
            answers[label] = found.products, found.values.tolist()
        for label, peer in peers.items():
            with evaluation_mode(peer.model):
                started = time.perf_counter()
                values = peer.top_eigenvalues(10)
                times.setdefault(label, []).append(time.perf_counter() - started)
            answers[label] = peer.products, values
    ours = times["planimeter"]
    lines = []
    for label, own in times.items():
        count, values = answers[label]
        errors = torch.tensor(sorted(values, reverse=True)).double() - exact.cpu()
        wrong = float(errors.abs().max() / exact.abs().max())
        ratio = statistics.median(a / b for a, b in zip(own, ours, strict=True))
        lines.append(f"| {name}, {len(y)} rows | {label} | {count} | {wrong:.0e} | {ratio:.2f} |")
    return lines


def summaries(name: str, rounds: int) -> list[str]:
    """Largest eigenvalue, trace, norm and density: one pass against separate calls."""
    model, x, y = problem(name, FEWER[name])
    peers = {
        label: peer
        for label, peer in made_peers(name, FEWER[name]).items()
        if label in ("landscaper, cache", "curvlinops")
        or (name == "MLP" and label == "hessian-eigenthings")  # ten probes of eighty steps
    }
    times: dict[str, list[float]] = {}
    cells: dict[str, str] = {}
    for _ in range(rounds):
        landscape = LossLandscape(model, cross_entropy, (x, y), batch_size=len(y))
        started = time.perf_counter()
        found = spectral_summary(landscape.hessian())
        times.setdefault("planimeter", []).append(time.perf_counter() - started)
        cells["planimeter"] = (
            f"{found.products} | {found.largest} | {found.trace} | {found.frobenius_norm} | yes"
        )
        for label, peer in peers.items():
            with evaluation_mode(peer.model):
                started = time.perf_counter()
                answers = peer.summary()
                times.setdefault(label, []).append(time.perf_counter() - started)
            numbers = [
                f"{answer.value:.5g}" if answer and not answer.note else "–"
                for answer in (answers[key] for key in ("lambda_max", "trace", "frobenius"))
            ]
            density = "yes" if answers["density"] and not answers["density"].note else "–"
            count = sum(a.products for a in answers.values() if a)
            cells[label] = f"{count} | {' | '.join(numbers)} | {density}"
    ours = times["planimeter"]
    return [
        f"| {name}, {len(y)} rows | {label} | {cells[label]} | "
        f"{statistics.median(a / b for a, b in zip(own, ours, strict=True)):.2f} |"
        for label, own in times.items()
    ]


def memory_in(mode: str, name: str, rows: int) -> int:
    """Bytes that one thing takes at its peak; on the CPU, whose peak never falls, in a process of
    its own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return peak(mode, name, rows)
    done = subprocess.run(
        [sys.executable, __file__, "--device", str(device), "--peak", mode, str(rows),
         "--only", name],
        check=True, capture_output=True, text=True,
        # What is freed goes back to the system at once, so that the resident set is what is in use.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak(mode: str, name: str, full: int) -> int:
    """Peak over what is there before: modules, model, data and vector; a small run has brought in
    what libraries need."""

    def run(rows: int, products: int) -> int:
        model, x, y = problem(name, rows)
        size = sum(p.numel() for p in model.parameters())
        v = torch.ones(size, dtype=torch.float64, device=device)
        before = reset_peak()
        if mode == "gradient":
            plain_gradient(model, x, y)
            return peak_bytes() - before
        strategy = {"kept": "auto", "recomputed": "recompute"}[mode]
        landscape = LossLandscape(
            model, cross_entropy, (x, y), batch_size=len(y), products=strategy
        )
        hessian = landscape.hessian()
        for _ in range(products):
            hessian @ v
        return peak_bytes() - before

    run(4, 2)
    return run(full, 2)


def reset_peak() -> int:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set
    return _status("VmRSS")


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def memory(name: str) -> list[str]:
    """Peak memory over the gradient's own: medians, because pages that are reused do not count."""
    lines = []
    for rows in HEAVY[name]:
        gradient, kept, recomputed = (
            statistics.median(memory_in(mode, name, rows) for _ in range(3)) for mode in MODES
        )
        lines.append(
            f"| {name}, {rows:,} rows | {gradient / 2**20:.0f} MiB | {kept / gradient:.2f} | "
            f"{recomputed / gradient:.2f} |"
        )
    return lines


FILES = ("products.md", "eigenvalues.md", "summaries.md", "memory.md")
SECTIONS: tuple[tuple[str, str, Callable[[str, int], list[str]]], ...] = (
    (
        "One product, in gradients of the same data",
        "| workload | who | gradients | over planimeter's best |\n|---|---|---|---|",
        products,
    ),
    (
        "Top 10 eigenvalues to a relative residual of 1e-3, set-up included",
        "| workload | who | products | largest error / λ_max | time over planimeter's |\n"
        "|---|---|---|---|---|",
        lambda name, rounds: eigenvalues(name, min(rounds, 3) if name == "MLP" else 1),
    ),
    (
        "λ_max, trace, Frobenius norm and density, set-up included",
        "| workload | who | products | λ_max | trace | Frobenius | density | time |\n"
        "|---|---|---|---|---|---|---|---|",
        lambda name, rounds: summaries(name, rounds if name == "MLP" else 1),
    ),
    (
        "Peak memory over the gradient's own",
        "| workload | gradient | kept | recomputed |\n|---|---|---|---|",
        lambda name, rounds: memory(name),
    ),
)


def large() -> list[str]:
    """What a GPU is for: all of CIFAR-10's size, and ten million parameters."""
    lines = []
    wide = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3072, 2560), torch.nn.ReLU(),
        torch.nn.Linear(2560, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 10),
    )  # fmt: skip
    resnet, x, y = problem("ResNet-20", 50_000)
    for label, model in (("MLP 3072-2560-1000-10", wide.to(device)), ("ResNet-20", resnet)):
        landscape = LossLandscape(model, cross_entropy, (x, y), batch_size=2000)
        hessian = landscape.hessian()
        product = partial(hessian.__matmul__, torch.ones(hessian.size, device=device))
        first = seconds(product)
        again = statistics.median(seconds(product) for _ in range(3))
        # The table's summary, cut to some 90 products: the error bars say what these give.
        found = spectral_summary(hessian, k=3, probes=2, steps=20, extra=20)
        lines.append(
            f"| {label}, {len(y):,} rows, {hessian.size:,} parameters | {first:.2f} | "
            f"{again:.3f} | {found.products} | {found.seconds:.1f} | {found.largest} | "
            f"{found.trace} | {found.frobenius_norm} |"
        )
        print(lines[-1], flush=True)
        del hessian, landscape, product
        torch.cuda.empty_cache()
    return lines


def main() -> None:
    global device
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=NAMES, nargs="*", default=list(NAMES))
    parser.add_argument("--section", type=int, nargs="*", default=[*range(len(SECTIONS) + 1)])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="sections 1, 2: all rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", nargs=2, metavar=("MODE", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # for peers and gradients too: float32 on both sides
    if options.peak:
        mode, rows = options.peak
        print(json.dumps(peak(mode, options.only[0], int(rows))))
        return
    if options.whole:
        FEWER.update(dict.fromkeys(NAMES))
    where = torch.cuda.get_device_name() if device.type == "cuda" else (
        f"{torch.get_num_threads()} threads"
    )  # fmt: skip
    head = (
        f"Medians of {options.rounds} alternating rounds (eigenvalues: 3 on the MLP, else 1; "
        f"summaries: else 1), torch {torch.__version__}, {where}. Written by "
        "`benchmarks/curvature.py`. "
        "Peers: " + ", ".join(sorted({f"{p.distribution} {version(p)}" for p in PEERS})) + ".\n"
    )
    folder = RESULTS / ("curvature" if device.type == "cpu" else f"curvature-{device.type}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, (title, columns, section) in enumerate(SECTIONS):
        if number not in options.section:
            continue
        print(f"\n## {title}\n\n{columns}", flush=True)
        lines = [columns]
        for name in options.only:
            for line in section(name, options.rounds):
                print(line, flush=True)
                lines.append(line)
        if sorted(options.only) == sorted(NAMES) and not options.whole:
            write(folder / FILES[number], title, head, lines)
    if device.type == "cuda" and len(SECTIONS) in options.section:
        columns = (
            "| | first product (s) | product (s) | products of a summary | seconds | λ_max | trace "
            "| Frobenius |\n|---|---|---|---|---|---|---|---|"
        )
        write(folder / "large.md", "Large problems", head, [columns, *large()])


def write(file: Path, title: str, head: str, lines: list[str]) -> None:
    file.write_text(f"# {title}\n\n{head}\n" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
