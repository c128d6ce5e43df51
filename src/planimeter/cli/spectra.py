"""The spectra that `planimeter measure --spectrum` computes and prints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from planimeter.cli.output import print_table
from planimeter.curvature import SpectralSummary, spectral_summary
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape

_SHOWN = {
    "largest": "largest eigenvalue",
    "smallest": "smallest eigenvalue",
    "trace": "trace",
    "frobenius_norm": "Frobenius norm",
}


def spectra(
    landscape: LossLandscape, seed: int, progress: Callable[[str, int, int], None]
) -> dict[str, SpectralSummary]:
    """One pass each over Hessian and Gauss-Newton matrix."""
    return {
        operator.name: spectral_summary(
            operator, seed=seed, progress=partial(progress, operator.name)
        )
        for operator in (landscape.hessian(), landscape.gauss_newton())
    }


def spectrum_record(summary: SpectralSummary) -> dict[str, Any]:
    """A summary as plain JSON values, raw quadrature included."""
    density = summary.density
    return {
        **{name: getattr(summary, name).as_dict() for name in _SHOWN},
        "eigenvalues": summary.eigenpairs.values.tolist(),
        "residuals": summary.eigenpairs.residuals.tolist(),
        "density": {
            "size": density.size,
            "known": density.known.tolist(),
            "nodes": [x.tolist() for x in density.nodes],
            "weights": [w.tolist() for w in density.weights],
        },
        "products": summary.products,
        "seconds": summary.seconds,
    }


def print_spectra(title: str, summaries: dict[str, SpectralSummary]) -> None:
    """A column for each matrix, and what the numbers cost."""
    rows = [
        (label, *(_with_residual(getattr(s, name)) for s in summaries.values()))
        for name, label in _SHOWN.items()
    ]
    count = max(len(s.eigenpairs.values) for s in summaries.values())
    rows.append(
        (
            f"top {count} by magnitude (residual)",
            *(
                "\n".join(
                    f"{v:.4g} ({r:.0e}){'' if ok else ' NOT CONVERGED'}"
                    for v, r, ok in zip(
                        s.eigenpairs.values,
                        s.eigenpairs.residuals,
                        s.eigenpairs.converged,
                        strict=True,
                    )
                )
                for s in summaries.values()
            ),
        )
    )
    rows.append(("products", *(str(s.products) for s in summaries.values())))
    rows.append(("seconds", *(f"{s.seconds:.1f}" for s in summaries.values())))
    print_table(title, ("", *summaries), rows)


def _with_residual(estimate: Estimate) -> str:
    """What has no standard error says how it was found, its residual included."""
    return str(estimate) if estimate.stderr else f"{estimate} ({estimate.method})"
