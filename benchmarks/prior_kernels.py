"""Infinite-width kernels against neural-tangents. Prints and writes times, ratios and differences.

    python -m venv peer && peer/bin/pip install jax==0.5.3 jaxlib==0.5.3 neural-tangents==0.6.5
    python benchmarks/prior_kernels.py --peer peer/bin/python     # 2 cores: ten minutes or more

Both sides run alternately, each in a process of its own that is warm (compiled, run once)
before it is timed; data and kernels travel as .npy files. Wall time is what a user waits for;
processor time is what is left of it on a busy machine. Differences are to neural-tangents in
float64, because its float32 is not exact enough to compare with. Needs mnist and cifar10 under
PLANIMETER_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "prior"
# Name: (network, data, rows, rows of a block of the peer or 0 for one block).
WORKLOADS = {
    "FCN, 2 hidden layers, d = 784": ("fcn", "mnist", 2000, 0),
    "CNN, 3 layers 3x3, no pooling": ("flat", "cifar10", 500, 50),
    "CNN, 3 layers 3x3, global pooling": ("pool", "cifar10", 20, 4),
}
QUICK = {"fcn": 500, "flat": 50, "pool": 4}


def ours(kind: str, rows: int, dtype: str, data: str, answers: str) -> None:
    """A server: computes the kernel for every line on standard input and prints its times."""
    import numpy as np
    import torch
    from torch import nn

    from planimeter import fully_connected_kernel, nngp_kernel

    x = torch.from_numpy(np.load(data)[:rows])
    convolutions: list[nn.Module] = []
    for channels in (3, 8, 8):
        convolutions += [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()]
    if kind == "fcn":  # as compiled as the peer: `nngp_kernel` would trace the module every time
        precision = getattr(torch, dtype)
        serve(lambda: fully_connected_kernel(x, dtype=precision).numpy(), answers)
        return
    if kind == "flat":
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8 * 32 * 32, 1))
    else:
        pooling = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*convolutions, *pooling, nn.Linear(8, 1))
    serve(lambda: nngp_kernel(model, x, dtype=getattr(torch, dtype)).numpy(), answers)


def theirs(kind: str, rows: int, dtype: str, data: str, answers: str, block: int) -> None:
    """The same with neural-tangents, in its own environment."""
    import jax
    import numpy as np

    jax.config.update("jax_enable_x64", dtype == "float64")
    import neural_tangents as nt
    from neural_tangents import stax

    x = np.load(data)[:rows].astype(dtype)
    scales = {"W_std": 2**0.5, "b_std": 1.0}
    if kind == "fcn":
        layers = [stax.Flatten(), stax.Dense(1, **scales), stax.Relu()]
        layers += [stax.Dense(1, **scales), stax.Relu()]
    else:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        layers = []
        for _ in range(3):
            layers += [stax.Conv(1, (3, 3), padding="SAME", **scales), stax.Relu()]
        layers.append(stax.Flatten() if kind == "flat" else stax.GlobalAvgPool())
    _, _, kernel = stax.serial(*layers, stax.Dense(1, **scales))
    if block:
        blocked = nt.batch(kernel, batch_size=block, store_on_device=False)
        serve(lambda: np.asarray(blocked(x, None, "nngp")), answers)
    else:
        compiled = jax.jit(lambda a: kernel(a, None, "nngp"))
        serve(lambda: np.asarray(compiled(x)), answers)


def serve(compute, answers: str) -> None:
    import time

    import numpy as np

    np.save(answers, compute())
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        compute()
        taken = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps(taken), flush=True)


class Side:
    """A process of one side."""

    def __init__(self, python: str, *arguments: str) -> None:
        command = [python, __file__, "--serve", *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.answer()

    def answer(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended early")
        return json.loads(line)

    def timed(self) -> tuple[float, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, processor = self.answer()
        return wall, processor

    def end(self) -> None:
        self.process.communicate()


def compared(name: str, peer: str, rounds: int, rows: int, folder: Path) -> list[str]:
    import numpy as np

    kind, data, _, block = WORKLOADS[name]
    block = min(block, rows)
    lines, exact = [], None
    for dtype in ("float64", "float32"):
        files = [str(folder / f"{side}-{kind}-{dtype}.npy") for side in ("ours", "theirs")]
        setting = [kind, str(rows), dtype, str(folder / f"{data}.npy")]
        sides = [
            Side(sys.executable, "ours", *setting, files[0]),
            Side(peer, "theirs", *setting, files[1], str(block)),
        ]
        times = [[side.timed() for side in sides] for _ in range(rounds)]
        for side in sides:
            side.end()
        found, other = (np.load(file).astype("float64") for file in files)
        exact = other if exact is None else exact
        wall, processor = (
            [statistics.median(round_[side][what] for round_ in times) for side in (0, 1)]
            for what in (0, 1)
        )
        ratios = [
            statistics.median(round_[1][what] / round_[0][what] for round_ in times)
            for what in (0, 1)
        ]
        lines.append(
            f"| {name}, n = {rows} | {dtype} | {wall[0]:.3g} | {wall[1]:.3g} | {ratios[0]:.2f} | "
            f"{processor[0]:.3g} | {processor[1]:.3g} | {ratios[1]:.2f} | "
            f"{abs(found - exact).max():.1e} | {abs(other - exact).max():.1e} |"
        )
        print(lines[-1], flush=True)
    return lines


def written(lines: list[str], rounds: int) -> None:
    import torch

    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kernels.md").write_text(
        "# Infinite-width kernels against neural-tangents 0.6.5 (jax 0.5.3)\n\n"
        f"Medians of {rounds} alternating rounds (FCN: {9 * rounds}), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads. Written by `benchmarks/prior_kernels.py`. Ratios: "
        "neural-tangents over planimeter, above 1 planimeter is faster. Differences: to "
        "neural-tangents in float64. The CNN times of planimeter include tracing the module, which "
        "neural-tangents has no need for; its own compilation is left out.\n\n"
        "| kernel | dtype | planimeter (s) | neural-tangents (s) | ratio | planimeter "
        "(processor s) | neural-tangents (processor s) | ratio | largest difference, planimeter "
        "| neural-tangents |\n|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    if "--serve" in sys.argv:
        side, kind, rows, dtype, data, answers, *block = sys.argv[2:]
        if side == "ours":
            ours(kind, int(rows), dtype, data, answers)
        else:
            theirs(kind, int(rows), dtype, data, answers, int(block[0]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python that has neural-tangents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer rows; writes nothing")
    parser.add_argument("--pool-rows", type=int, default=20, help="a multiple of 4")
    options = parser.parse_args()
    import numpy as np

    from planimeter.data import load

    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for data in ("mnist", "cifar10"):
            np.save(folder / f"{data}.npy", load(data).inputs[:2000].numpy())
        for workload, (kind, _, rows, _) in WORKLOADS.items():
            few = QUICK[kind] if options.quick else rows
            few = options.pool_rows if kind == "pool" and not options.quick else few
            rounds = options.rounds * (9 if kind == "fcn" else 1)  # it takes a fraction of a second
            lines += compared(workload, options.peer, rounds, few, folder)
            if not options.quick:
                written(lines, options.rounds)


if __name__ == "__main__":
    main()
