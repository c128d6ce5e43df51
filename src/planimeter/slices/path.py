r"""Sharpness along a rescaling :math:`\theta \mapsto \theta_\alpha` that leaves the loss unchanged.

.. math:: \alpha \mapsto S(\theta_\alpha), \qquad L(\theta_\alpha) = L(\theta).

A measure whose path is not flat depends on how the network is written down, not on what it
computes (Dinh et al. 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from planimeter.errors import InputError, MeasurementWarning
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape
from planimeter.printing import short_repr

TOLERANCE = 1e-5
"""How far the loss may move, relative to its largest value, and count as unchanged."""


@dataclass(frozen=True)
class SharpnessPath:
    """Measures along a rescaling.

    Arguments:
        factors: (n,) the α, positive.
        values: measure name to its (n,) values.
        errors: measure name to its (n,) standard errors.
        converged: measure name to whether each of the (n,) values converged.
        losses: (n,) L(theta_α).
        loss_change: largest less smallest loss, relative to the largest.
        loss_kept: whether `loss_change` is at most 1e-5: the rescaling left the loss alone.
    """

    factors: Float[Tensor, " n"]
    values: dict[str, Float[Tensor, " n"]]
    errors: dict[str, Float[Tensor, " n"]]
    converged: dict[str, Bool[Tensor, " n"]]
    losses: Float[Tensor, " n"]
    loss_change: float
    loss_kept: bool

    def __repr__(self) -> str:
        return short_repr(self)

    def __str__(self) -> str:
        told = "the loss stays the same" if self.loss_kept else "THE LOSS CHANGES"
        lines = [f"{len(self.factors)} factors; {told} (relative change {self.loss_change:.1e})"]
        for name, values in self.values.items():
            lines.append(f"{name}: {float(values.min()):.6g} to {float(values.max()):.6g}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "factors": self.factors.tolist(),
            "values": {name: v.tolist() for name, v in self.values.items()},
            "errors": {name: e.tolist() for name, e in self.errors.items()},
            "converged": {name: c.tolist() for name, c in self.converged.items()},
            "losses": self.losses.tolist(),
            "loss_change": self.loss_change,
            "loss_kept": self.loss_kept,
        }


def sharpness_path(
    at: Callable[[float], LossLandscape],
    measures: Mapping[str, Callable[[LossLandscape], Estimate]],
    factors: Sequence[float] | Float[Tensor, " n"],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SharpnessPath:
    r"""Measures at every :math:`\theta_\alpha` of a rescaling, and whether the loss stays the same.

    Arguments:
        at: α to the landscape at the rescaled parameters.
        measures: name to a function of a landscape; `lambda l: trace(l.hessian())`, for one.
        factors: the α, at least one, positive and finite.
        progress: called after each factor with the factors done and their number.

    Returns:
        The path; a loss that moves by more than 1e-5 of its largest value along it is told in
        `loss_kept`, and by a MeasurementWarning.

    Raises:
        InputError: no factor or no measure is given, or a factor is not positive and finite.

    Source: Dinh, Pascanu, Bengio, Bengio 2017, Section 4 (the rescaling of ReLU layers).
    """
    alphas = torch.as_tensor(factors, dtype=torch.float64).reshape(-1)
    if not len(alphas) or not measures:
        raise InputError(f"a path needs factors and measures, got {len(alphas)}, {len(measures)}")
    wrong = alphas[~(torch.isfinite(alphas) & (alphas > 0))]
    if len(wrong):
        raise InputError(f"factors must be positive and finite, got {float(wrong[0]):g}")
    found: dict[str, list[Estimate]] = {name: [] for name in measures}
    losses = []
    for i, alpha in enumerate(alphas.tolist()):
        landscape = at(alpha)
        losses.append(landscape.loss())
        for name, measure in measures.items():
            found[name].append(measure(landscape))
        progress(i + 1, len(alphas))
    change = (max(losses) - min(losses)) / (max(map(abs, losses)) or 1.0)
    if not change <= TOLERANCE:
        warnings.warn(
            f"the loss changes along the path, from {min(losses):.6g} to {max(losses):.6g}: this "
            f"is no rescaling that leaves it alone",
            MeasurementWarning,
            stacklevel=2,
        )

    def table(read: Callable[[Estimate], float | bool], dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            name: torch.tensor([read(e) for e in own], dtype=dtype) for name, own in found.items()
        }

    return SharpnessPath(
        factors=alphas,
        values=table(lambda e: e.value, torch.float64),
        errors=table(lambda e: e.stderr, torch.float64),
        converged=table(lambda e: e.converged, torch.bool),
        losses=torch.tensor(losses, dtype=torch.float64),
        loss_change=change,
        loss_kept=change <= TOLERANCE,
    )
