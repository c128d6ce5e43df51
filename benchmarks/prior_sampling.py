"""Sampling of functions against the machine's own matrix products. Prints and writes a table.

    python benchmarks/prior_sampling.py            # about two minutes on 2 idle cores

The Boolean system (7-40-40-1 on all 128 inputs). Reference: the three batched products that a
network needs, (B, 128, 7) x (B, 7, 40), (B, 128, 40) x (B, 40, 40) and (B, 128, 40) x (B, 40, 1),
alone, into preallocated outputs, on as many threads, for the B that is fastest. Against it: all of
`sample_functions` (random numbers, products, ReLU, packing, counting), and a plain loop over
batches as one would write it in torch. Rounds alternate; the smallest time of each counts, since
other programs can only slow a round down. Where they do, look at the processor time.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from planimeter.prior import boolean_inputs, sample_functions
from planimeter.prior.packing import pack

RESULTS = Path(__file__).parent / "results" / "prior"
WIDTHS, SIGMA_W, SIGMA_B = (7, 40, 40, 1), 1.0, 0.1
NETWORKS = 1 << 17


def products(block: int, threads: int) -> Callable[[], None]:
    """The products alone, as often as `NETWORKS` networks need them."""
    own = threading.local()

    def work(_: int) -> None:
        if not hasattr(own, "buffers"):
            torch.set_num_threads(1)
            own.buffers = [
                (torch.randn(block, 128, i), torch.randn(block, i, o), torch.empty(block, 128, o))
                for i, o in ((7, 40), (40, 40), (40, 1))
            ]
        for _ in range(NETWORKS // (16 * block)):
            for left, right, out in own.buffers:
                torch.bmm(left, right, out=out)

    pool = ThreadPoolExecutor(threads)
    return lambda: [None for _ in pool.map(work, range(16))] and None


def plain(block: int = 1024) -> None:
    """What one would write: torch.randn, baddbmm, a dictionary of byte strings; all threads."""
    x = boolean_inputs(7).expand(block, 128, 7)
    counts: dict[bytes, int] = {}
    with torch.inference_mode():
        for _ in range(NETWORKS // block):
            h = x
            for i, o in ((7, 40), (40, 40), (40, 1)):
                weights = torch.randn(block, i, o) * (SIGMA_W / i**0.5)
                biases = torch.randn(block, 1, o) * SIGMA_B
                h = torch.baddbmm(biases, h if i == 7 else h.relu(), weights)
            for row in pack((h[:, :, 0] > 0).numpy()):
                key = row.tobytes()
                counts[key] = counts.get(key, 0) + 1


def sampled(threads: int) -> None:
    sample_functions(
        WIDTHS, boolean_inputs(7), NETWORKS, sigma_w=SIGMA_W, sigma_b=SIGMA_B, threads=threads
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cores = torch.get_num_threads()
    lines = []
    for threads in dict.fromkeys((1, cores)):
        calls = {f"products, B={b}": products(b, threads) for b in (16, 64, 256)}
        calls["sample_functions"] = lambda threads=threads: sampled(threads)
        if threads == cores:
            calls["plain loop"] = plain
        wall: dict[str, list[float]] = {name: [] for name in calls}
        cpu: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                started, used = time.perf_counter(), time.process_time()
                call()
                wall[name].append((time.perf_counter() - started) / NETWORKS * 1e6)
                cpu[name].append((time.process_time() - used) / NETWORKS * 1e6)
        best = min(min(wall[n][1:]) for n in calls if n.startswith("products"))
        best_cpu = min(min(cpu[n][1:]) for n in calls if n.startswith("products"))
        for name in calls:
            smallest, least = min(wall[name][1:]), min(cpu[name][1:])
            lines.append(
                f"| {threads} | {name} | {smallest:.2f} | {statistics.median(wall[name][1:]):.2f} "
                f"| {best / smallest:.2f} | {least:.2f} | {best_cpu / least:.2f} |"
            )
            print(lines[-1], flush=True)
    header = (
        "# Sampling of functions against matrix products\n\n"
        f"7-40-40-1 on 128 inputs, {NETWORKS} networks a round, {rounds} alternating rounds, torch "
        f'{torch.__version__}. Microseconds a network; "of the rate" is the time of the fastest '
        "products alone over this time. Printed by `benchmarks/prior_sampling.py`.\n\n"
        "| threads | what | smallest | median | of the rate | processor time | of the rate |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "sampling.md").write_text(header + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
