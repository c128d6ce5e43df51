"""Where the installable peers are silently wrong: their answer, ours and the exact one.

The exact answers come from the dense Hessian in float64. The networks are tiny and their seeds
chosen so that the error shows; the docstrings say how often it does. A peer that is right, or that
raises instead of answering wrongly, is shown as such. The numbers are those of the list of fifteen
silent errors; 14 and 15 are no peer's.

    python benchmarks/peer_failures.py       # under a minute; prints a Markdown table
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from peers import (
    Curvlinops,
    HessianEigenthings,
    Landscaper,
    Peer,
    PyHessianBatch,
    PyHessianLoader,
    first_line,
    quiet,
    version,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import planimeter.curvature
from planimeter import InputError, LossLandscape, top_eigenvalues, trace

ONE_OF_EACH: tuple[type[Peer], ...] = (
    PyHessianLoader,
    Landscaper,
    HessianEigenthings,
    Curvlinops,
)


@dataclass(frozen=True)
class Row:
    error: str
    peer: str
    theirs: str
    ours: str
    exact: str


# -- the errors ------------------------------------------------------------------------------------


def power_iteration() -> Iterator[Row]:
    """1. Eigenvalues of both signs compete: deflation stops between them, and signs are wrong.

    Of the seeds 0 to 9, five give PyHessian a negative value among the top 5. Power iteration can
    find the largest magnitudes at best: with three seeds PyHessian has those wrong too.
    """
    error = "1. top 5 eigenvalues, power iteration"
    model, (x, y) = network(nn.Tanh, seed=7), data(60, seed=7, spread=2.0)
    values = spectrum(model, x, y)
    largest = values[values.abs().argsort(descending=True)]
    exact = f"{numbers(values[:5])}; by magnitude {numbers(largest[:5])}"
    ours = numbers(top_eigenvalues(landscape(model, x, y).hessian(), 5, tolerance=1e-3).values)
    for peer in (PyHessianBatch, Landscaper):
        yield Row(
            error,
            label(peer),
            said(lambda p=peer: numbers(p(model, x, y, batch_size=60).top_eigenvalues(5))),
            ours,
            exact,
        )

    def deflated() -> str:
        package = importlib.import_module("hessian_eigenthings")
        operator = HessianEigenthings(model, x, y, batch_size=60).peer
        return numbers(
            package.deflated_power_iteration(operator, k=5, tol=1e-3, seed=0).eigenvalues
        )

    yield Row(error, label(HessianEigenthings), said(deflated), ours, exact)


def negative_trace() -> Iterator[Row]:
    """2. PyHessian divides by the signed trace: a negative running mean ends the estimate.

    Seen with 6 of the seeds 0 to 39, whenever an early mean is negative; landscaper has mended it.
    """
    for seed, what in ((3, "negative"), (20, "positive, first probe negative")):
        model, (x, y) = wave_network(seed), data(60, seed=seed)
        ours = trace(landscape(model, x, y).hessian(), probes=100)
        for peer in (PyHessianBatch, Landscaper):
            yield Row(
                f"2. trace, {what}",
                label(peer),
                said(lambda p=peer, m=model, x=x, y=y: traced(p(m, x, y, batch_size=60))),
                f"{ours} ({ours.products} products)",
                f"{float(dense_hessian(model, x, y).trace()):.3f}",
            )


def scaled_loss() -> Iterator[Row]:
    """3. Absolute epsilons: the eigenvalues of a scaled loss are not the scaled eigenvalues."""
    model, (x, y) = network(nn.Tanh, seed=2), data(60, seed=2)
    for scale, peers in (
        (1e-6, (PyHessianBatch, Landscaper)),
        (1e-8, (PyHessianBatch, Landscaper)),
        (1e-12, (HessianEigenthings,)),
    ):
        loss = ScaledCrossEntropy(scale)
        exact = float(spectrum(model, x, y)[0])
        found = top_eigenvalues(landscape(model, x, y, loss).hessian()).values[0]
        for peer in peers:
            yield Row(
                f"3. λ₁ of {scale:g} L, over {scale:g}",
                label(peer),
                said(lambda p=peer, s=scale, f=loss: first(p, model, x, y, f, s)),
                f"{float(found) / scale:.4f}",
                f"{exact:.4f}",
            )


def uneven_batches() -> Iterator[Row]:
    """4. Batches of 50 and 5 rows weighted equally."""
    model, (x, y) = trained(network(nn.Tanh, seed=4), *data(55, seed=4))
    exact = spectrum(model, x, y)
    whole = LossLandscape(model, nn.CrossEntropyLoss(), (x, y), batch_size=50)
    ours = top_eigenvalues(whole.hessian()).values[0]
    for peer in ONE_OF_EACH:
        yield Row(
            "4. λ₁, batches of 50 and 5 rows",
            label(peer),
            said(lambda p=peer: f"{p(model, x, y, batch_size=50).top_eigenvalues(1)[0]:.4f}"),
            f"{float(ours):.4f}",
            f"{float(exact[0]):.4f}",
        )


def finite_differences() -> Iterator[Row]:
    """5. A finite step crosses the kinks of ReLU; Lanczos still says that it has converged."""
    model, (x, y) = trained(network(nn.ReLU, seed=2, width=16), *data(200, seed=2))

    def differences() -> str:
        package = importlib.import_module("hessian_eigenthings")
        loss = package.supervised_loss(nn.CrossEntropyLoss())
        operator = package.HessianOperator(model, [(x, y)], loss, method="finite_difference")
        found = package.lanczos(operator, k=1, max_iter=40, which="LA", tol=1e-3, seed=0)
        flag = "converged" if bool(found.converged[0]) else "not converged"
        return f"{float(found.eigenvalues[0]):.3f} ({flag})"

    found = top_eigenvalues(landscape(model, x, y).hessian(), tolerance=1e-3)
    yield Row(
        "5. λ₁, ReLU, finite differences",
        label(HessianEigenthings),
        said(differences),
        f"{float(found.values[0]):.3f} ({'converged' if bool(found.converged[0]) else 'not'})",
        f"{float(spectrum(model, x, y)[0]):.3f}",
    )


def ghosts() -> Iterator[Row]:
    """6. Lanczos without reorthogonalisation: converged eigenvalues come back as copies."""
    model, (x, y) = trained(network(nn.ReLU, seed=1, width=16), *data(200, seed=1))
    exact = spectrum(model, x, y)

    def copies(values: Tensor) -> str:
        return str(int(((values.double() - exact[0]).abs() < 1e-3 * exact[0]).sum()))

    def papyan() -> str:
        module = importlib.import_module("curvlinops.papyan2020traces.spectrum")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            operator = Curvlinops(model, x, y, batch_size=200).peer
            return copies(module.fast_lanczos(operator, 120)[0])

    def steps() -> str:
        package = importlib.import_module("hessian_eigenthings")
        operator = HessianEigenthings(model, x, y, batch_size=200).peer
        found = package.lanczos(operator, k=10, max_iter=120, which="LA", seed=0)
        return f"{copies(found.eigenvalues)} of top 10"

    ours = copies(top_eigenvalues(landscape(model, x, y).hessian(), 10).values)
    for peer, call in ((Curvlinops, papyan), (HessianEigenthings, steps)):
        yield Row("6. copies of λ₁, 120 steps", label(peer), said(call), ours, copies(exact))


def density_weights() -> Iterator[Row]:
    """7. The weights of a spectral density sum to 1."""
    model, (x, y) = network(nn.Tanh, seed=4, width=10), data(60, seed=4)

    landscape = LossLandscape(model, nn.functional.cross_entropy, (x, y))
    own = planimeter.curvature.spectral_density(landscape.hessian(), probes=2, steps=20)
    sums = ", ".join(f"{float(w.sum()):.12g}" for w in own.weights)
    for peer in (PyHessianBatch, Landscaper):
        yield Row(
            "7. sum of the density's weights",
            label(peer),
            said(lambda p=peer: density_sum(p(model, x, y, batch_size=60))),
            sums,
            "1",
        )


def unused_parameter() -> Iterator[Row]:
    """8. A parameter that the loss does not use has a zero block; every peer raises."""
    model, (x, y) = Unused(network(nn.Tanh, seed=5)), data(30, seed=5)
    yield from products("8. product, a parameter unused", model, x, y)


def attention() -> Iterator[Row]:
    """9. Fused attention has no second derivative on a CPU."""
    torch.manual_seed(0)
    model, x, y = Attention(), torch.randn(12, 5, 8), torch.randint(0, 3, (12,))
    yield from products("9. product, attention", model, x, y)


def batch_norm() -> Iterator[Row]:
    """10. A measurement leaves the buffers and the training mode of a model as they were."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).train()
    x, y = data(40, seed=6)
    v = torch.randn(sum(p.numel() for p in start.parameters()))

    def after(measure: Callable[[nn.Module], Any]) -> str:
        model = copy.deepcopy(start)
        with quiet():
            measure(model)
        moved = float((model[1].running_mean - start[1].running_mean).abs().max())
        return f"mean moved by {moved:.2g}, {'train' if model.training else 'eval'} mode"

    def eigenthings(model: nn.Module) -> Tensor:
        package = importlib.import_module("hessian_eigenthings")
        loss = package.supervised_loss(nn.CrossEntropyLoss())
        return package.HessianOperator(model, [(x, y)], loss) @ v

    def curvlinops(model: nn.Module) -> Tensor:
        operator = importlib.import_module("curvlinops").HessianLinearOperator
        parameters = list(model.parameters())
        return (
            operator(model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False)
            @ v
        )

    def pyhessian(model: nn.Module) -> Any:
        peer = importlib.import_module("pyhessian").hessian
        return peer(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).trace(maxIter=1)

    def landscaper(model: nn.Module) -> Any:
        peer = importlib.import_module("landscaper.hessian").PyHessian
        return peer(model, nn.CrossEntropyLoss(), [(x, y)], "cpu").trace(maxIter=1)

    ours = after(lambda model: landscape(model, x, y).hessian() @ v)
    calls = (pyhessian, landscaper, eigenthings, curvlinops)
    for peer, call in zip(ONE_OF_EACH, calls, strict=True):
        yield Row(
            "10. BatchNorm in train mode, after",
            label(peer),
            said(lambda c=call: after(c)),
            ours,
            "mean moved by 0, train mode",
        )


def augmented_loader() -> Iterator[Row]:
    """11. A loader that gives other rows every time has no Hessian: refuse it."""
    model, (x, y) = network(nn.Tanh, seed=7), data(40, seed=7)
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    loader = Augmented(x, y)

    def spread(product: Callable[[Tensor], Tensor]) -> str:
        torch.manual_seed(0)
        one, other = product(v), product(v)
        return f"two products differ by {100 * float((one - other).norm() / one.norm()):.0f} %"

    def ours() -> str:
        try:
            operator = LossLandscape(model, nn.CrossEntropyLoss(), loader).hessian()
            return spread(operator.__matmul__)
        except InputError:
            return "refused"

    def theirs(peer: type[Peer]) -> str:
        made = peer(model, x, y, batch_size=40)
        if isinstance(made, Curvlinops):  # with its check, which is on by default
            operator = made.package.HessianLinearOperator
            with quiet():
                operator(model, made.loss, list(model.parameters()), loader)
        if isinstance(made, HessianEigenthings):
            made.peer.dataloader = loader
        else:
            made.peer.data = loader
        return spread(made.product)

    for peer in ONE_OF_EACH:
        yield Row(
            "11. augmented loader",
            label(peer),
            said(lambda p=peer: theirs(p)),
            ours(),
            "refused",
        )


def random_state() -> Iterator[Row]:
    """12. Two runs agree, and PyTorch's global generator is left alone."""
    model, (x, y) = wave_network(4), data(60, seed=4)

    def twice(estimate: Callable[[], Any]) -> str:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        one, other = estimate(), estimate()
        kept = torch.equal(before, torch.get_rng_state())
        return f"{one}, {other}; global state {'kept' if kept else 'moved'}"

    def theirs(peer: type[Peer]) -> str:
        made = peer(model, x, y, batch_size=60)
        with quiet():
            return twice(lambda: round(made.trace(), 3))

    operator = landscape(model, x, y).hessian()
    for peer in ONE_OF_EACH:
        yield Row(
            "12. trace, run twice",
            label(peer),
            said(lambda p=peer: theirs(p)),
            twice(lambda: trace(operator)),
            f"{float(dense_hessian(model, x, y).trace()):.3f}; kept",
        )


def gauss_newton() -> Iterator[Row]:
    """13. On a linear model the Gauss-Newton matrix is the Hessian; here on uneven batches."""
    torch.manual_seed(0)
    model, (x, y), loss = nn.Linear(6, 3), data(40, seed=0), nn.CrossEntropyLoss()
    batches = list(zip(x.split(16), y.split(16), strict=True))
    v = torch.randn(21)
    exact = dense_hessian(model, x, y) @ v.double()

    def eigenthings() -> str:
        package = importlib.import_module("hessian_eigenthings")
        operator = package.GGNOperator(
            model,
            batches,
            forward_fn=package.supervised_forward,
            loss_of_output_fn=package.supervised_loss_of_output(loss),
        )
        return off(operator @ v, exact)

    def curvlinops() -> str:
        operator = importlib.import_module("curvlinops").GGNLinearOperator
        parameters = list(model.parameters())
        return off(operator(model, loss, parameters, batches, check_deterministic=False) @ v, exact)

    ours = off(LossLandscape(model, loss, (x, y), batch_size=16).gauss_newton() @ v, exact)
    for peer, call in ((HessianEigenthings, eigenthings), (Curvlinops, curvlinops)):
        yield Row("13. GGN, linear model, uneven", label(peer), said(call), ours, "off by 0")


# -- models and data -------------------------------------------------------------------------------


class ScaledCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy times a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.scale * super().forward(outputs, targets)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class Unused(nn.Module):
    """A model with a parameter that its output does not depend on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.idle = model, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Attention(nn.Module):
    """One encoder layer, the mean over the sequence, and a linear read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(
            8, 2, dim_feedforward=8, activation="gelu", dropout=0.0, batch_first=True
        )
        self.readout = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.layer(x).mean(1))


class Augmented:
    """One batch, with new noise in its inputs at every pass."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.x + 0.3 * torch.randn_like(self.x), self.y


def network(activation: type[nn.Module], *, seed: int, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width), activation(), nn.Linear(width, width), activation(),
        nn.Linear(width, 3),
    )  # fmt: skip


def wave_network(seed: int) -> nn.Sequential:
    """With large weights before a sine: a Hessian with much negative curvature."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), Sine(), nn.Linear(16, 3))
    with torch.no_grad():
        for p in model.parameters():
            p *= 4
    return model


def data(rows: int, *, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = spread * torch.randn(rows, 6, generator=generator)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def trained(model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, (x, y)


# -- answers ---------------------------------------------------------------------------------------


def landscape(
    model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module | None = None
) -> LossLandscape:
    return LossLandscape(model, loss or nn.CrossEntropyLoss(), (x, y))


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the mean cross-entropy, (P, P), float64, column by column."""
    model = copy.deepcopy(model).double().eval()
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = nn.functional.cross_entropy(model(x.double()), y)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        gradient = torch.cat([g.reshape(-1) for g in gradients])
        rows = []
        for entry in gradient:
            if not entry.requires_grad:
                rows.append(torch.zeros_like(gradient))
                continue
            row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([r.reshape(-1) for r in row]))
    return torch.stack(rows).detach()


def spectrum(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Exact eigenvalues, descending."""
    return torch.linalg.eigvalsh(dense_hessian(model, x, y)).flip(0)


def products(error: str, model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Row]:
    """A product with ones by every peer: its relative error, or how it raised."""
    ones = torch.ones(sum(p.numel() for p in model.parameters()))
    exact = dense_hessian(model, x, y) @ ones.double()

    ours = off(landscape(model, x, y).hessian() @ ones, exact)
    for peer in ONE_OF_EACH:
        yield Row(
            error,
            label(peer),
            said(lambda p=peer: off(p(model, x, y, batch_size=len(y)).product(ones), exact)),
            ours,
            "off by 0",
        )


def off(product: Tensor, exact: Tensor) -> str:
    return f"off by {float((product - exact).norm() / exact.norm()):.0e}"


def first(
    peer: type[Peer], model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, scale: float
) -> str:
    made = peer(model, x, y, batch_size=len(y), loss=loss)
    return f"{made.top_eigenvalues(1)[0] / scale:.4f} ({made.products} products)"


def traced(peer: Peer) -> str:
    answer = peer.answer(peer.trace)
    return f"{answer.value:.3f} ({answer.products} products)"


def density_sum(peer: Peer) -> str:
    answer = peer.answer(peer.density)
    if answer.value is None:
        return shortened(answer.note)
    weights = numpy.asarray(answer.value[1][0])
    return f"{abs(weights.sum()):.3f} in {weights.shape} weights"


def numbers(values: Iterable[Any]) -> str:
    return " ".join(f"{float(value):.3f}" for value in values)


def shortened(text: str) -> str:
    return text if len(text) <= 90 else text[:87] + "..."


def label(peer: type[Peer]) -> str:
    return f"{peer.distribution} {version(peer)}"


def said(call: Callable[[], str]) -> str:
    """What a peer's call gives, or the error that it raises."""
    try:
        return call()
    except ImportError as error:
        return f"not installed ({error.name})"
    except Exception as error:
        return shortened(first_line(error))


FAILURES: tuple[Callable[[], Iterator[Row]], ...] = (
    power_iteration,
    negative_trace,
    scaled_loss,
    uneven_batches,
    finite_differences,
    ghosts,
    density_weights,
    unused_parameter,
    attention,
    batch_norm,
    augmented_loader,
    random_state,
    gauss_newton,
)


def main() -> None:
    torch.set_num_threads(1)
    text = "| error | peer | its answer | planimeter | exact |\n|---|---|---|---|---|\n"
    print(text, end="")
    for failure in FAILURES:
        for row in failure():
            line = f"| {row.error} | {row.peer} | {row.theirs} | {row.ours} | {row.exact} |\n"
            print(line, end="", flush=True)
            text += line
    head = "# Silent errors of the peers, beside planimeter\n\n"
    head += "Written by `benchmarks/peer_failures.py`, which says how each case is made.\n\n"
    file = Path(__file__).parent / "results" / "peer_failures.md"
    file.write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
