r"""Measures of the spectrum of the Hessian, or of the Gauss-Newton matrix.

With eigenvalues :math:`\lambda_1 \ge \lambda_2 \ge \dots` of either matrix. What they have in
common, the k largest eigenvalues and random probes of the rest, is computed once when
several are asked for together (`planimeter.flatness.measure`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from planimeter.curvature import (
    Eigenpairs,
    SpectralDensity,
    frobenius_norm,
    gauss_newton_rank_bound,
    hessian_rank_bound,
    log_product,
    spectral_density,
    top_eigenvalues,
    trace,
    trace_and_frobenius_norm,
)
from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.shared import shared
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

Progress = Callable[[int, int], None]
MATRICES = ("hessian", "gauss_newton")


def _quiet(done: int, total: int) -> None: ...


def matrix_of(landscape: LossLandscape, matrix: str) -> CurvatureOperator:
    """The operator of a matrix by its name.

    Raises:
        InputError: there is no such matrix.
        NotApplicableError: the loss has no Gauss-Newton matrix.
    """
    if matrix not in MATRICES:
        raise InputError(f"no matrix {matrix!r}; there are {', '.join(MATRICES)}")
    return landscape.hessian() if matrix == "hessian" else landscape.gauss_newton()


def eigenpairs(
    landscape: LossLandscape, matrix: str, k: int, seed: int, progress: Progress = _quiet
) -> Eigenpairs:
    """The k largest eigenvalues, from a search that serves all measures that ask for the same k."""
    operator = matrix_of(landscape, matrix)
    return shared(
        landscape,
        lambda: top_eigenvalues(
            operator,
            min(k, operator.size),
            tolerance=1e-3,
            seed=seed,
            progress=progress,
        ),
        "eigenpairs", matrix, k, seed,
    )  # fmt: skip


def density(
    landscape: LossLandscape,
    matrix: str,
    k: int,
    probes: int,
    steps: int,
    seed: int,
    progress: Progress = _quiet,
) -> SpectralDensity:
    """The whole spectrum: the k largest eigenvalues exactly, the rest from random probes."""
    pairs = eigenpairs(landscape, matrix, k, seed, progress)
    return shared(
        landscape,
        lambda: spectral_density(
            matrix_of(landscape, matrix),
            probes=probes,
            steps=steps,
            extra=5 * probes,
            known=pairs,
            seed=seed + 1,
            progress=progress,
        ),
        "density", matrix, k, probes, steps, seed,
    )  # fmt: skip


def spectral_norm(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    tolerance: float = 1e-3,
    max_products: int | None = None,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Estimate:
    r"""The spectral norm, :math:`\max_i |\lambda_i|`.

    Arguments:
        matrix: "hessian" or "gauss_newton".
        tolerance, max_products: of the Lanczos search.
        seed: of its start.

    Source: granziol2020.
    """
    return shared(
        landscape,
        lambda: _extreme(
            matrix_of(landscape, matrix), "magnitude", tolerance, max_products, seed, progress
        ),
        "spectral_norm", matrix, tolerance, max_products, seed,
    )  # fmt: skip


def largest_eigenvalue(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    tolerance: float = 1e-3,
    max_products: int | None = None,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Estimate:
    r"""The largest eigenvalue, :math:`\lambda_1`, with sign.

    Arguments as for `spectral_norm`.

    Source: granziol2020; zhang2021, Section 2.
    """
    return shared(
        landscape,
        lambda: _extreme(
            matrix_of(landscape, matrix), "largest", tolerance, max_products, seed, progress
        ),
        "largest", matrix, tolerance, max_products, seed,
    )  # fmt: skip


def largest_eigenvalue_times_norm(landscape: LossLandscape, **settings: Any) -> Estimate:
    r""":math:`\lambda_1 \|\theta\|^2`, which the experiments of granziol2020 print.

    Arguments as for `largest_eigenvalue`.
    """
    return largest_eigenvalue(landscape, **settings) * float(landscape.theta.square().sum())


def log_product_top_k(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    k: int = 50,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Estimate:
    r"""The log-product of the k largest eigenvalues, :math:`\sum_{i \le k} \log \lambda_i`.

    Arguments:
        matrix: "hessian" or "gauss_newton".
        k: how many; zhang2021 has 50.
        seed: of the search.

    Raises:
        NotApplicableError: fewer than k eigenvalues are positive.

    Source: zhang2021, Figures S2 and S4.
    """
    pairs = eigenpairs(landscape, matrix, k, seed, progress)
    if len(pairs.values) < k:
        raise NotApplicableError(f"the matrix has only {len(pairs.values)} eigenvalues, not {k}")
    try:
        return log_product(pairs)
    except InputError as error:
        raise NotApplicableError(str(error)) from error


def effective_dimension(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    damping: float = 1.0,
    k: int = 50,
    probes: int = 6,
    steps: int = 25,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Estimate:
    r"""How many directions the data determine,
    :math:`\sum_{\lambda_i > 0} \lambda_i / (\lambda_i + z)`.

    It is defined for matrices without negative eigenvalues. Those of a Hessian curve down, so that
    the data determine nothing along them: they count as 0 (the term itself has a pole at -z).

    Arguments:
        matrix: "hessian" or "gauss_newton".
        damping: z > 0.
        k, probes, steps: of the density.
        seed: of search and probes.

    Source: Maddox et al. 2020, Equation 2.
    """
    spectrum = density(landscape, matrix, k, probes, steps, seed, progress)
    return replace(spectrum.effective_dimension(damping), seed=seed)


def numerical_rank(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    tolerance: float = 1e-3,
    k: int = 50,
    probes: int = 6,
    steps: int = 25,
    seed: int = 0,
    progress: Progress = _quiet,
) -> Estimate:
    r"""How many eigenvalues matter: :math:`\#\{i : |\lambda_i| > \mathrm{tol}\, \lambda_1\}`.

    Arguments:
        matrix: "hessian" or "gauss_newton".
        tolerance: relative to the largest magnitude.
        k, probes, steps: of the density.
        seed: of search and probes.

    Source: granziol2020 has the rank; the tolerance makes it a number of its own.
    """
    spectrum = density(landscape, matrix, k, probes, steps, seed, progress)
    found = spectrum.numerical_rank(tolerance)
    return replace(found, method=f"{found.method}, tolerance {tolerance:g}", seed=seed)


def rank_bound(landscape: LossLandscape, *, matrix: str = "hessian") -> Estimate:
    """The upper bound on the rank, with what it assumes (`planimeter.curvature.rank_bound`).

    Arguments:
        matrix: "hessian" or "gauss_newton".

    Raises:
        NotApplicableError: no bound is known for the network.
    """
    bound = hessian_rank_bound if matrix == "hessian" else gauss_newton_rank_bound
    try:
        found = bound(landscape)
    except InputError as error:
        raise NotApplicableError(str(error)) from error
    return Estimate(float(found.value), 0.0, f"{found.formula} (assumes: {found.assumption})")


def _extreme(
    operator: CurvatureOperator,
    which: str,
    tolerance: float,
    max_products: int | None,
    seed: int,
    progress: Progress,
) -> Estimate:
    pairs = top_eigenvalues(
        operator,
        1,
        which=which,
        tolerance=tolerance,
        max_products=max_products,
        multiplicities=False,
        seed=seed,
        progress=progress,
    )
    found = pairs.first()
    return replace(found, value=abs(found.value)) if which == "magnitude" else found


def _trace_and_norm(
    landscape: LossLandscape, matrix: str, progress: Progress = _quiet, **settings: Any
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm from the same products, each as it is alone."""
    return shared(
        landscape,
        lambda: trace_and_frobenius_norm(
            matrix_of(landscape, matrix), **settings, progress=progress
        ),
        "trace_and_norm", matrix, *sorted(settings.items()),
    )  # fmt: skip


def _trace(
    landscape: LossLandscape,
    matrix: str = "hessian",
    tolerance: float = 0.0,
    method: str = "hutch++",
    **settings: Any,
) -> Estimate:
    if tolerance or method != "hutch++":
        return trace(matrix_of(landscape, matrix), tolerance=tolerance, method=method, **settings)
    return _trace_and_norm(landscape, matrix, **settings)[0]


def _frobenius_norm(
    landscape: LossLandscape,
    matrix: str = "hessian",
    tolerance: float = 0.0,
    method: str = "hutch++",
    **settings: Any,
) -> Estimate:
    if tolerance or method != "hutch++":
        return frobenius_norm(
            matrix_of(landscape, matrix), tolerance=tolerance, method=method, **settings
        )
    return _trace_and_norm(landscape, matrix, **settings)[1]


def _rank_bound(landscape: LossLandscape, matrix: str = "hessian", **_: Any) -> Estimate:
    return rank_bound(landscape, matrix=matrix)


_TABLE: tuple[tuple[str, str, str, str, str, Callable[..., Estimate], Callable[..., Any]], ...] = (
    (
        "spectral_norm", "spectral norm", "‖{}‖₂", "max_i |λ_i|", "granziol2020",
        spectral_norm, spectral_norm,
    ),
    (
        "top_eigenvalue", "λ_max", "λ_max({})", "max_v v'{}v / v'v",
        "granziol2020; zhang2021 Section 2", largest_eigenvalue, largest_eigenvalue,
    ),
    (
        "top_eigenvalue_times_norm", "λ_max·‖θ‖²", "λ‖θ‖²({})", "λ_max ‖θ‖²", "granziol2020",
        largest_eigenvalue_times_norm, largest_eigenvalue,
    ),
    ("trace", "trace", "tr {}", "tr {}", "granziol2020", _trace, trace),
    (
        "frobenius_norm", "Frobenius norm", "‖{}‖_F", "(tr {}²)^(1/2)", "granziol2020",
        _frobenius_norm, frobenius_norm,
    ),
    (
        "log_product_top_k", "log-product of the top k eigenvalues", "Σlog λ({})",
        "Σ_{{i≤k}} log λ_i", "zhang2021 Figure S2", log_product_top_k, log_product_top_k,
    ),
    (
        "effective_dimension", "effective dimension", "d_eff({})", "Σ_{{λ_i>0}} λ_i / (λ_i + z)",
        "Maddox et al. 2020", effective_dimension, effective_dimension,
    ),
    (
        "numerical_rank", "numerical rank", "rank({})", "#{{|λ_i| > tol λ_max}}", "granziol2020",
        numerical_rank, numerical_rank,
    ),
    (
        "rank_bound", "bound on the rank", "rank bound({})", "see rank_bound", "granziol2020",
        _rank_bound, rank_bound,
    ),
)  # fmt: skip

_FEW = {"k": 10, "probes": 2, "steps": 10}
_QUICK = {"log_product_top_k": {"k": 10}, "effective_dimension": _FEW, "numerical_rank": _FEW}

MEASURES = tuple(
    Measure(
        prefix + name,
        f"{label} of the {long}",
        symbol.format(letter),
        formula.format(letter),
        reference,
        "none" if name == "rank_bound" else "sharpness",
        frozenset(("layer", "neuron")) if name == "rank_bound" else frozenset(),
        partial(compute, matrix=matrix),
        function,
        _QUICK.get(name, {}),
        by_layer=name != "rank_bound",
    )
    for matrix, prefix, long, letter in (
        ("hessian", "", "Hessian", "H"),
        ("gauss_newton", "gauss_newton_", "Gauss-Newton matrix", "G"),
    )
    for name, label, symbol, formula, reference, compute, function in _TABLE
)
