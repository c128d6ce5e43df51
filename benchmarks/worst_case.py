"""How near worst-case sharpness and Keskar's box come to the best of 100 starts. Prints and writes.

    python benchmarks/worst_case.py                  # about 25 minutes of one core
    python benchmarks/worst_case.py --nets 6         # a part; what is done is kept and gone on with

64 networks (two MLPs and a CNN, ReLU and tanh, ten classes and two, half-trained and trained) on
256 of scikit-learn's digits. For every one, radius and box: the value, what one start of Auto-PGD
(20 steps) or three sign ascents (15 steps, from the centre and two corners) find, as planimeter
climbed before it had restarts, and the best of 100 full ascents (random points and corners of the
ball, and output directions). Both sides of a ratio of times run in turn, as CPU time of one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from planimeter.flatness import keskar_sharpness, worst_case_sharpness
from planimeter.flatness.adaptive import RADII
from planimeter.flatness.ascents import Ball, starts
from planimeter.flatness.at_points import losses_at, output_directions
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy

RESULTS = Path(__file__).parent / "results" / "flatness"
ROWS, REFERENCE, ROUNDS = 256, 100, 3
ACTIVATIONS = {"ReLU": nn.ReLU, "tanh": nn.Tanh}


def networks() -> list[dict[str, Any]]:
    """Kinds of networks; every one is trained with its own seed."""
    found = []
    for seed, kind, act, classes, epochs in itertools.product(
        range(3), ("MLP", "deep MLP", "CNN"), ACTIVATIONS, (10, 2), (8, 40)
    ):
        if kind != "CNN" or seed < 2:
            values = (kind, act, classes, epochs, seed)
            found.append(
                dict(zip(("kind", "act", "classes", "epochs", "seed"), values, strict=True))
            )
    return found


def trained(kind: str, act: str, classes: int, epochs: int, seed: int) -> LossLandscape:
    pixels, labels = load_digits(return_X_y=True)
    rows = np.random.RandomState(0).permutation(len(labels))[:ROWS]
    x = torch.from_numpy(pixels[rows]).float() / 16
    y = torch.from_numpy(labels[rows] if classes == 10 else (labels[rows] >= 5).astype(int)).long()
    torch.manual_seed(seed)
    a, outputs = ACTIVATIONS[act], classes if classes > 2 else 1
    layers: list[nn.Module]
    if kind == "MLP":
        layers = [nn.Linear(64, 32), a(), nn.Linear(32, outputs)]
    elif kind == "deep MLP":
        inner = [nn.Linear(24, 24), a(), nn.Linear(24, 24), a()]
        layers = [nn.Linear(64, 24), a(), *inner, nn.Linear(24, outputs)]
    else:
        convolutions = [nn.Conv2d(1, 6, 3, padding=1), a(), nn.MaxPool2d(2)]
        convolutions += [nn.Conv2d(6, 8, 3, padding=1), a(), nn.Flatten()]
        layers = [nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.Linear(128, outputs)]
    net = nn.Sequential(*layers)
    loss = nn.functional.cross_entropy if classes > 2 else binary_cross_entropy
    optimiser, draws = torch.optim.Adam(net.parameters(), lr=5e-3), torch.Generator()
    draws.manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(ROWS, generator=draws).split(32):
            optimiser.zero_grad()
            loss(net(x[part]), y[part]).backward()
            optimiser.step()
    return LossLandscape(net.eval(), loss, (x, y))


def problems() -> list[dict[str, Any]]:
    """Balls: default radii and three times those (twice for adaptive l2), and boxes."""
    found: list[dict[str, Any]] = []
    for (norm, adaptive), factor in itertools.product(RADII, (1, 3)):
        more = 2 if factor == 3 and adaptive and norm == "l2" else factor
        radius = RADII[norm, adaptive] * more
        found.append({"norm": norm, "adaptive": adaptive, "radius": radius})
    return found + [
        {"norm": "box", "adaptive": True, "radius": zeta} for zeta in (1e-4, 1e-3, 1e-2)
    ]


class Problem:
    """A ball around a network, and losses in it as functions of z."""

    def __init__(self, landscape: LossLandscape, norm: str, adaptive: bool, radius: float) -> None:
        self.landscape, self.adaptive, self.radius, self.box = landscape, adaptive, radius, norm
        self.norm = "linf" if norm == "box" else norm
        self.batch = None
        if norm != "box":
            self.batch = next(landscape.minibatches(128, torch.Generator().manual_seed(0)))
        theta = landscape.theta.to(landscape.dtype)
        self.scale = theta.abs() + float(norm == "box") if adaptive else torch.ones_like(theta)
        self.theta, self.ball = theta, Ball(self.norm, radius)

    def losses(self, z: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = losses_at(self.landscape, self.batch)(self.theta + self.scale * z)
        return values, slopes * self.scale

    def one(self, z: Tensor) -> tuple[float, Tensor]:
        """One point, by autograd alone."""
        point = (self.theta + self.scale * z).requires_grad_()
        shapes = {name: p.shape for name, p in self.landscape.parameters.items()}
        parts = point.split([shape.numel() for shape in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        x, y = self.batch or next(self.landscape.batches())
        loss = self.landscape.function.loss(self.landscape.forward(named, x), y)
        return float(loss.detach()), torch.autograd.grad(loss, point)[0] * self.scale

    def value(self, rise: float, loss: float) -> float:
        return 100 * rise / (1 + loss) if self.box == "box" else rise

    def now(self, **settings: Any) -> tuple[float, bool]:
        if self.box == "box":
            found = keskar_sharpness(self.landscape, zeta=self.radius, **settings)
            return found.value, found.converged
        settings = {"adaptive": self.adaptive, "norm": self.norm, "batches": 1} | settings
        rise = worst_case_sharpness(self.landscape, radius=self.radius, **settings)
        return rise.value, rise.converged

    def before(self) -> float:
        if self.box == "box":
            return sign_ascents(self)
        return one_start(self)


def one_start(problem: Problem) -> float:
    """Auto-PGD of 20 steps from the centre, one point at a time."""
    with problem.landscape.mode():
        ball, radius, steps = problem.ball, problem.radius, 20
        z = torch.zeros_like(problem.theta)
        start, slope = problem.one(z)
        up = ball.steepest(slope[None])[0] / radius
        best, best_z, best_up, before = start, z, up, z
        step, last_step, last_best, previous = 2 * radius, 0.0, start, start
        gained, since, places = 0, 0, [0.0, 0.22]
        while places[-1] < 1:
            places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
        checkpoints = {math.ceil(place * steps) for place in places[1:]}
        for k in range(steps):
            ahead = ball.project((z + step * up)[None])[0]
            if k:
                ahead = ball.project((0.75 * ahead + 0.5 * z - 0.25 * before)[None])[0]
            before, z = z, ahead
            value, slope = problem.one(z)
            up = ball.steepest(slope[None])[0] / radius
            gained, previous, since = gained + (value > previous), value, since + 1
            if value > best:
                best, best_z, best_up = value, z, up
            if k + 1 in checkpoints:
                back = gained < 0.75 * since or (last_step == step and last_best == best)
                last_step, last_best = step, best
                if back:
                    step /= 2
                    z, before, up, previous = best_z, best_z, best_up, best
                gained = since = 0
    return problem.value(best - start, start)


def sign_ascents(problem: Problem) -> float:
    """Three of 15 steps, halved from the best point where they do not gain."""
    landscape, draws = problem.landscape, torch.Generator().manual_seed(0)
    centre, width = landscape.theta, problem.radius * (landscape.theta.abs() + 1)
    base = best = landscape.loss()
    for start in range(3):
        z = torch.zeros_like(width)
        if start:
            z = width * (2 * torch.randint(0, 2, z.shape, generator=draws).to(z) - 1)
        loss, slope = landscape.at(centre + z).loss_and_gradient()
        best, size = max(best, loss), 2.0
        for _ in range(15):
            ahead = torch.clamp(z + size * width * slope.sign(), -width, width)
            new, new_slope = landscape.at(centre + ahead).loss_and_gradient()
            best = max(best, new)
            if new > loss:
                z, loss, slope = ahead, new, new_slope
            else:
                size /= 2
            if size < 1e-3:
                break
    return problem.value(best - base, base)


def one_quasi_newton(problem: Problem) -> float:
    """L-BFGS-B of 15 iterations from the centre, the loss divided by the box's size."""
    landscape = problem.landscape
    centre, width = landscape.theta, problem.radius * (landscape.theta.abs() + 1)
    base = best = landscape.loss()

    def descent(u: Any) -> tuple[float, Any]:
        nonlocal best
        there = landscape.at(centre + width * torch.as_tensor(u))
        loss, slope = there.loss_and_gradient()
        best = max(best, loss)
        return -loss / problem.radius, (-slope * width / problem.radius).numpy()

    bounds, options = [(-1.0, 1.0)] * len(centre), {"maxiter": 15, "ftol": 1e-12, "gtol": 1e-12}
    scipy.optimize.minimize(
        descent, np.zeros(len(centre)), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return problem.value(best - base, base)


def of_many_starts(problem: Problem) -> float:
    """The best of 100 Auto-PGDs, none given up: random points and corners, output directions."""
    from planimeter.flatness.ascents import Climb, checkpoint_steps

    size, radius, half = len(problem.theta), problem.radius, REFERENCE // 2
    draws = torch.Generator().manual_seed(1)
    with problem.landscape.mode():
        losses = losses_at(problem.landscape, problem.batch)

        def evaluate(z: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = losses(problem.theta + problem.scale * z)
            return values, slopes * problem.scale

        base, slope = evaluate(torch.zeros(1, size))
        turned = output_directions(problem.landscape, problem.batch, half // 2, draws)
        informed = starts(problem.ball, slope[0], turned * problem.scale, half, draws)
        if problem.norm == "linf":
            corners = torch.randint(0, 2, (half // 2, size), generator=draws) * 2.0 - 1
            inside = torch.rand(half - half // 2, size, generator=draws) * 2 - 1
            blind = radius * torch.cat([corners, inside])
        else:
            blind = torch.randn(half, size, generator=draws)
            blind *= radius / blind.norm(dim=1, keepdim=True)
            blind[half // 2 :] *= torch.rand(half - half // 2, 1, generator=draws)
        climb = Climb(evaluate, torch.cat([informed, blind]), problem.ball)
        places = checkpoint_steps(20)
        for k in range(20):
            climb.step()
            if k + 1 in places:
                climb.check()
    return problem.value(climb.highest - float(base), float(base))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = call()
    return time.process_time() - started, result


def measured(landscape: LossLandscape, problem: dict[str, Any]) -> dict[str, Any]:
    one = Problem(landscape, **problem)
    ratios = []
    for _ in range(ROUNDS):
        (old, before), (new, (value, converged)) = timed(one.before), timed(one.now)
        ratios.append(new / old)
    found = {"value": value, "before": before, "converged": converged}
    found["time"] = statistics.median(ratios)
    if one.box == "box":
        found["lbfgs"], found["lbfgs_converged"] = one.now(method="lbfgs", steps=15)
        found["lbfgs_before"] = one_quasi_newton(one)
    found["reference"] = of_many_starts(one)
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for problem in problems():
        mine = [row for row in rows if row["problem"] == problem]
        if not mine:
            continue
        kinds = [("value", "before", "converged", "")]
        if problem["norm"] == "box":
            kinds.append(("lbfgs", "lbfgs_before", "lbfgs_converged", ", L-BFGS-B"))
        for value, before, converged, what in kinds:
            top = [max(row[k] for k in ("reference", "value", "before")) for row in mine]
            now = [row[value] / best for row, best in zip(mine, top, strict=True)]
            old = [row[before] / best for row, best in zip(mine, top, strict=True)]
            said = [n for row, n in zip(mine, now, strict=True) if row[converged]]
            ratio = f"{statistics.median(row['time'] for row in mine):.2f}" if not what else "–"
            name = (
                "Keskar, ζ"
                if problem["norm"] == "box"
                else (f"{'adaptive' if problem['adaptive'] else 'standard'} {problem['norm']}, ρ")
            )
            lines.append(
                f"| {name} {problem['radius']:g}{what} | {len(mine)} | {share(old)} | "
                f"{min(old):.2f} | {share(now)} | {min(now):.2f} | {len(said)} | "
                f"{min(said, default=math.nan):.3f} | {ratio} |"
            )
    return lines


def share(ratios: list[float]) -> str:
    return f"{100 * sum(r >= 0.98 for r in ratios) / len(ratios):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("worst_case.jsonl"))
    parser.add_argument("--nets", type=int, default=len(networks()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    if options.store.exists():
        rows = [json.loads(line) for line in options.store.read_text().splitlines()]
    for net in networks()[: options.nets]:
        missing = [
            p for p in problems() if not any((r["net"], r["problem"]) == (net, p) for r in rows)
        ]
        landscape = trained(**net) if missing else None
        for problem in missing:
            assert landscape is not None
            rows.append({"net": net, "problem": problem, **measured(landscape, problem)})
            with options.store.open("a") as store:
                store.write(json.dumps(rows[-1]) + "\n")
        print(f"{net}: {len(missing)} measured", flush=True)
    title = "Worst-case sharpness and Keskar's box against the best of 100 starts"
    columns = (
        "| ball | networks | one start: ≥ 98 % | least | now: ≥ 98 % | least | "
        "converged | least of those | time / one start's |\n|---|---|---|---|---|---|---|---|---|"
    )
    lines = table(rows)
    print(f"\n## {title}\n\n{columns}\n" + "\n".join(lines))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "worst_case.md").write_text(
        f"# {title}\n\nWritten by `benchmarks/worst_case.py`; torch {torch.__version__}, one "
        f"thread. Of Keskar's box the start before was three sign ascents, or L-BFGS-B from the "
        f"centre.\n\n{columns}\n" + "\n".join(lines) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
