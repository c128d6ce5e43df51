r"""The spectral density by stochastic Lanczos quadrature (SLQ), and what follows from it.

For a random unit vector v, m Lanczos steps give nodes :math:`\theta_i` and weights
:math:`w_i = s_{1i}^2` (squared first entries of the eigenvectors of the tridiagonal matrix) with

.. math:: v^T f(A) v \approx \sum_i w_i f(\theta_i), \qquad
          E[v^T f(A) v] = \tfrac1P \mathrm{tr} f(A),

exact for polynomials of degree up to 2m - 1: the trace and the squared Frobenius norm, which are
P times the first two moments, have no quadrature error at all. Eigenpairs that are known already
are counted exactly, and v is drawn in their orthogonal complement, where far less varies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from planimeter.curvature.forms import mean_form_error
from planimeter.curvature.krylov import Eigenpairs, basis_dtype
from planimeter.curvature.stochastic import gaussian
from planimeter.curvature.units import UnitProducts, unit_of
from planimeter.errors import InputError
from planimeter.estimate import Estimate, standard_error
from planimeter.machine.memory import free_memory
from planimeter.operator import CurvatureOperator, check_operator
from planimeter.printing import short_repr

Progress = Callable[[int, int], None]
WIDTH = 16
"""Further probes that are multiplied at a time."""
Function = Callable[[Float[Tensor, " m"]], Float[Tensor, " m"]]


@dataclass(frozen=True)
class SpectralDensity:
    """The eigenvalues of a matrix as a probability measure, raw quadrature kept.

    Arguments:
        size: P.
        known: (k,) eigenvalues counted exactly, each with weight 1/P.
        nodes, weights: one entry a probe, (m,) each; the weights of a probe sum to 1 and share the
            other (P - k)/P.
        moments: (e, 2) first and second moments of further probes of one product each, which serve
            trace and norm alone.
        products: matrix-vector products spent, those for the known eigenvalues included.
        converged: False when the known eigenvalues had not met their tolerance.
        seed, dtype, device, seconds: of the computation.
    """

    size: int
    known: Float[Tensor, " k"]
    nodes: list[Float[Tensor, " _"]]
    weights: list[Float[Tensor, " _"]]
    moments: Float[Tensor, "e 2"]
    products: int
    converged: bool = True
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return short_repr(self)

    def functional(self, f: Function, what: str = "functional") -> Estimate:
        r"""The sum of f over all eigenvalues, :math:`\mathrm{tr} f(A)`.

        Its error joins that of the probes (`planimeter.curvature.forms`) with the error of the
        quadrature, for which half the number of steps stands in.
        """
        if not self.nodes:
            return self._estimate(f, torch.zeros(2), 0.0, f"exact {what}")
        pairs = list(zip(self.nodes, self.weights, strict=True))
        samples = torch.stack([(w * f(x)).sum() for x, w in pairs])
        halved = torch.stack([(w * f(x)).sum() for x, w in (_halved(*pair) for pair in pairs)])
        steps = max(map(len, self.nodes))
        rest = self.size - len(self.known)
        error = mean_form_error(*self._spread(f, float(samples.mean())), rest, len(samples))
        name = f"SLQ {what}, {len(samples)} probes of {steps} steps"
        found = self._estimate(f, samples, error, name)
        quadrature = rest * abs(float((samples - halved).mean()))
        return replace(found, stderr=math.hypot(found.stderr, quadrature))

    def _estimate(
        self, f: Function, samples: Float[Tensor, " s"], error: float, method: str
    ) -> Estimate:
        """The sum of f over the known eigenvalues, and over the others from their mean."""
        rest = self.size - len(self.known)
        offset = float(f(self.known).sum()) if len(self.known) else 0.0
        return Estimate(
            offset + rest * float(samples.mean()),
            rest * error,
            f"{method}, {len(self.known)} eigenvalues known",
            self.products,
            self.converged,
            self.seed,
            self.dtype,
            self.device,
            self.seconds,
        )

    def _spread(self, f: Function, mean: float) -> tuple[float, float]:
        """Mean powers 2 and 3 of f's distance from its mean over the unknown eigenvalues."""
        pairs = list(zip(self.nodes, self.weights, strict=True))
        two, three = (
            float(torch.stack([(w * (f(x) - mean) ** power).sum() for x, w in pairs]).mean())
            for power in (2, 3)
        )
        return two, three

    def _moment(self, power: int, what: str) -> Estimate:
        """The sum of a power of the eigenvalues, from all probes; no quadrature error."""

        def f(x: Tensor) -> Tensor:
            return x**power

        if not self.nodes:
            return self._estimate(f, torch.zeros(2), 0.0, f"exact {what}")
        own = [(w * f(x)).sum() for x, w in zip(self.nodes, self.weights, strict=True)]
        samples = torch.cat([torch.stack(own), self.moments[:, power - 1]])
        mean, count = float(samples.mean()), len(samples)
        two, three = self._spread(f, mean)
        if power == 1 and len(self.moments):
            further = (self.moments[:, 1] - 2 * mean * self.moments[:, 0] + mean**2).sum()
            two = (two * len(own) + float(further)) / count
        rest = self.size - len(self.known)
        error = mean_form_error(two, three, rest, count, of_root=power == 2)
        if power == 2 and len(self.moments):
            # Fourth moments are known from the few probes with steps alone: they may be low.
            error = max(error, standard_error(samples))
        return self._estimate(f, samples, error, f"{what}, {count} probes")

    def moment(self, power: int) -> Estimate:
        r"""The mean of :math:`\lambda^{\mathrm{power}}` over all eigenvalues."""
        return self.functional(lambda x: x**power, f"moment {power}") * (1 / self.size)

    def trace(self) -> Estimate:
        """The sum of the eigenvalues; no quadrature error."""
        return self._moment(1, "trace")

    def frobenius_norm(self) -> Estimate:
        """The root of the sum of their squares; no quadrature error."""
        return self._moment(2, "Frobenius norm").sqrt()

    def effective_dimension(self, damping: float) -> Estimate:
        r"""How many directions the data determine,
        :math:`\sum_{\lambda_i > 0} \lambda_i / (\lambda_i + c)`.

        Arguments:
            damping: c > 0; eigenvalues below 0, for which it is not defined (the term has a pole at
                -c), count as 0.

        Source: MacKay 1992, Equation 4.9; Maddox et al. 2020, Equation 2.
        """
        if not damping > 0:
            raise InputError(f"damping must be positive, got {damping}")
        return self.functional(
            lambda x: x.clamp_min(0) / (x.clamp_min(0) + damping),
            f"effective dimension at {damping:g}",
        )

    def numerical_rank(self, tolerance: float) -> Estimate:
        r"""How many :math:`|\lambda_i|` are above `tolerance` times the largest."""
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, got {tolerance}")
        bar = tolerance * self.largest()
        return self.functional(
            lambda x: (x.abs() > bar).to(x), f"rank at {tolerance:g} of the largest |eigenvalue|"
        )

    def largest(self) -> float:
        """The largest |eigenvalue| seen."""
        return max(float(x.abs().max()) for x in [self.known, *self.nodes] if len(x))

    def density(
        self, grid: Float[Tensor, " g"], width: float
    ) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
        """The density on a grid, every eigenvalue a Gaussian of standard deviation `width`.

        Returns:
            The density, which integrates to 1, and its standard error.
        """
        if not width > 0:
            raise InputError(f"width must be positive, got {width}")

        def bumps(x: Tensor, w: Tensor) -> Tensor:
            z = (grid[:, None] - x[None]) / width
            return (w * torch.exp(-0.5 * z * z)).sum(1) / (width * math.sqrt(2 * math.pi))

        grid = grid.to(torch.float64)
        rest = (self.size - len(self.known)) / self.size
        exact = bumps(self.known, torch.full_like(self.known, 1 / self.size))
        if not self.nodes:
            return exact, torch.zeros_like(exact)
        parts = [rest * bumps(x, w) for x, w in zip(self.nodes, self.weights, strict=True)]
        samples = torch.stack(parts)
        errors = torch.tensor([standard_error(column) for column in samples.unbind(1)])
        return exact + samples.mean(0), errors

    def log_density(
        self, grid: Float[Tensor, " g"], width: float
    ) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
        """The natural logarithm of `density`, and its standard error to first order.

        Where the density is 0 to rounding, the value is -inf and the error infinite.
        """
        density, error = self.density(grid, width)
        return density.log(), torch.where(density > 0, error / density, math.inf)

    def __str__(self) -> str:
        low = min(float(x.min()) for x in [self.known, *self.nodes] if len(x))
        high = max(float(x.max()) for x in [self.known, *self.nodes] if len(x))
        return (
            f"{self.size} eigenvalues in [{low:.6g}, {high:.6g}], {len(self.known)} of them known, "
            f"the rest from {len(self.nodes)} probes of "
            f"{max(map(len, self.nodes), default=0)} steps"
        )


def spectral_density(
    operator: CurvatureOperator,
    *,
    probes: int = 8,
    steps: int = 50,
    extra: int = 0,
    known: Eigenpairs | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> SpectralDensity:
    """The spectral density by stochastic Lanczos quadrature with full reorthogonalisation.

    Arguments:
        operator: size P.
        probes: random vectors, at least 2; they run side by side, so that block products serve.
        steps: of each, at least 2; fewer where the Krylov space is exhausted before.
        extra: further probes of one product each, for trace and norm.
        known: eigenpairs to count exactly, such as `top_eigenvalues` gives them.
        seed: of the probes.
        progress: called with the products done and their greatest number.

    Raises:
        InputError: fewer than 2 probes or 2 steps.

    Source: Golub and Meurant 1994; Ubaru, Chen and Saad 2017; granziol2020, Section 3.
    """
    started = time.perf_counter()
    if probes < 2:
        raise InputError(f"{probes} probes leave no standard error: use at least 2")
    if steps < 2 or extra < 0:
        raise InputError(f"steps must be at least 2 and extra at least 0, got {steps} and {extra}")
    generator = torch.Generator().manual_seed(seed)
    size = check_operator(operator).size
    rows = torch.zeros(0, size, dtype=basis_dtype(operator), device=operator.device)
    if known is not None:
        rows = known.vectors.T.to(rows).contiguous()
    # Rounding is relative to the whole matrix, not to what is left of it.
    scale = float(known.values.abs().max()) if known is not None and len(known) else 0.0
    products = UnitProducts(operator, rows.dtype, unit_of(torch.tensor([scale])))
    steps = min(steps, size - len(rows))
    at_once = _at_once(operator, probes, steps)
    nodes: list[Tensor] = []
    weights: list[Tensor] = []
    done = 0
    for start in range(0, probes if steps else 0, at_once):
        count = min(at_once, probes - start)
        vectors = gaussian(operator, count, generator).T
        chains = _Chains(products, rows, vectors, steps, scale)
        for _ in range(steps):
            done += chains.step()
            progress(done, probes * steps + extra)
        for chain in chains.quadrature():
            nodes.append(chain[0] * products.unit)
            weights.append(chain[1])
    moments = torch.empty(0, 2, dtype=torch.float64)
    for start in range(0, extra if steps else 0, WIDTH):
        v = gaussian(operator, min(WIDTH, extra - start), generator).T.to(rows)
        v = _outside(_outside(v, rows), rows)
        v = v / v.norm(dim=1, keepdim=True)
        images = _outside(products(v), rows)
        fresh = torch.stack([(v * images).sum(1), (images**2).sum(1)], dim=1).double()
        fresh *= torch.tensor([products.unit, products.unit**2], dtype=torch.float64).to(fresh)
        moments = torch.cat([moments, fresh.cpu()])
        done += len(v)
        progress(done, done + extra - len(moments))
    return SpectralDensity(
        size,
        torch.zeros(0, dtype=torch.float64) if known is None else known.values.cpu(),
        nodes,
        weights,
        moments,
        done + (0 if known is None else known.products),
        known is None or bool(known.converged.all()),
        seed,
        str(operator.dtype).removeprefix("torch."),
        str(operator.device),
        time.perf_counter() - started + (0.0 if known is None else known.seconds),
    )


def _halved(nodes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The quadrature of half as many steps: Lanczos on the diagonal matrix of the nodes."""
    x, q = nodes.numpy(), np.sqrt(weights.numpy())
    q = q / np.linalg.norm(q)
    basis, alphas, betas = [q], [], []
    for _ in range(max(1, len(x) // 2)):
        w = x * basis[-1]
        alphas.append(float(w @ basis[-1]))
        known = np.array(basis)
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beta = float(np.linalg.norm(w))
        if beta <= 1e-14 * float(np.abs(x).max()):
            break
        betas.append(beta)
        basis.append(w / beta)
    theta, s = eigh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]))
    return torch.from_numpy(theta), torch.from_numpy(s[0] ** 2)


def _at_once(operator: CurvatureOperator, probes: int, steps: int) -> int:
    """How many chains with their bases fit into a quarter of the free memory."""
    chain = steps * operator.size * torch.finfo(basis_dtype(operator)).bits // 8
    return int(min(probes, max(1, free_memory(operator.device) // (4 * max(chain, 1)))))


class _Chains:
    """Lanczos recurrences that run side by side in the complement of known vectors."""

    def __init__(
        self,
        products: UnitProducts,
        known: Float[Tensor, "k P"],
        start: Float[Tensor, "c P"],
        steps: int,
        scale: float,
    ) -> None:
        self.products, operator = products, products.operator
        self.epsilon, self.dtype = operator.epsilon, products.dtype
        self.known = known
        count = len(start)
        rows = _outside(_outside(start.to(self.dtype), known), known)
        self.basis = torch.empty(
            count, steps + 1, operator.size, dtype=self.dtype, device=operator.device
        )
        self.basis[:, 0] = rows / rows.norm(dim=1, keepdim=True)
        self.alphas: list[list[float]] = [[] for _ in range(count)]
        self.betas: list[list[float]] = [[] for _ in range(count)]
        self.alive = list(range(count))
        self.last_betas = torch.zeros(count, dtype=self.dtype, device=operator.device)
        self.scale = scale / products.unit
        self.at = 0

    def step(self) -> int:
        """One product for every chain that has not exhausted its space."""
        if not self.alive:
            return 0
        alive, m = self.alive, self.at + 1
        current = self.basis[alive, self.at]
        images = _outside(self.products(current), self.known)
        alphas = (images * current).sum(1)
        self.scale = max(self.scale, float(images.norm(dim=1).max()))
        images = images - alphas[:, None] * current
        if m > 1:
            images -= self.last_betas[:, None] * self.basis[alive, self.at - 1]
        for place, chain in enumerate(alive):  # a batched product with one vector is slower
            vectors, own = self.basis[chain, :m], images[place]
            for _ in range(2):
                lost = vectors @ own
                own.addmv_(vectors.T, lost, alpha=-1)
                if float(lost.norm()) < 0.1 * float(own.norm()):
                    break
        betas = images.norm(dim=1)
        self.at = m
        survivors = []
        for place, chain in enumerate(alive):
            self.alphas[chain].append(float(alphas[place]))
            if float(betas[place]) > max(1e-14, self.epsilon) * self.scale:
                survivors.append(place)
                self.betas[chain].append(float(betas[place]))
                self.basis[chain, m] = images[place] / betas[place]
        self.alive, self.last_betas = [alive[place] for place in survivors], betas[survivors]
        return len(alive)

    def quadrature(self) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights of every chain."""
        result = []
        for alphas, betas in zip(self.alphas, self.betas, strict=True):
            theta, s = eigh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]))
            result.append((torch.from_numpy(theta), torch.from_numpy(s[0] ** 2)))
        return result


def _outside(vectors: Float[Tensor, "c P"], known: Float[Tensor, "k P"]) -> Float[Tensor, "c P"]:
    """The parts orthogonal to orthonormal rows."""
    return vectors - (vectors @ known.T) @ known if len(known) else vectors
