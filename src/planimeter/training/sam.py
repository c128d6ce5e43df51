r"""Sharpness-aware minimisation: descent with the gradient at the worst point nearby.

.. math:: \hat\epsilon = \rho \frac{\nabla L(\theta)}{\|\nabla L(\theta)\|_2}, \qquad
          \theta \leftarrow \theta - \eta \, \nabla L(\theta + \hat\epsilon),

the step being one of SGD, with momentum :math:`\mu` and coupled weight decay at :math:`\theta`.

Source: Foret et al. 2021 (arXiv 2010.01412), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError


class SAM(torch.optim.SGD):
    """SAM on SGD.

    Arguments:
        params: parameters to optimise.
        lr: eta.
        rho: radius of the neighbourhood in the Euclidean norm over all parameters.
        momentum, nesterov, weight_decay: of SGD.

    `step` needs a closure, and calls it twice **on the same mini-batch**.
    """

    passes_per_batch = 2
    """How often the closure is called before it may go on to the next mini-batch."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        *,
        rho: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if not rho >= 0:
            raise InputError(f"SAM needs rho >= 0, got {rho}")
        super().__init__(
            params, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )
        for group in self.param_groups:
            group["rho"] = rho

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss at the point itself."""
        if closure is None:
            raise InputError("SAM needs a closure that takes the gradient on one mini-batch twice")
        with torch.enable_grad():
            loss = closure()
        live = [
            (p, group["rho"])
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.stack([p.grad.norm() for p, _ in live]).norm()
        if norm > 0:
            # Kept, not computed back: theta + e - e is not theta in floating point.
            kept = [p.clone() for p, _ in live]
            for p, rho in live:
                p.add_(p.grad * (rho / norm))
            with torch.enable_grad():
                closure()
            for (p, _), value in zip(live, kept, strict=True):
                p.copy_(value)
        else:
            with torch.enable_grad():
                closure()
        super().step()
        return loss
