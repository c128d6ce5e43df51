r"""Padam: AMSGrad whose denominator has a power of its own, between momentum and Adam.

With the gradient :math:`g_t` (plus :math:`w \theta` where weight decay is coupled),

.. math:: m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
          v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
          \hat v_t = \max(\hat v_{t-1}, v_t),

.. math:: \theta_t = \theta_{t-1} - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}
          \frac{m_t}{(\sqrt{\hat v_t} + \epsilon)^{2p}}.

p = 1/2 is AMSGrad, p = 0 momentum. Here :math:`\epsilon` stands beside :math:`\sqrt{\hat v_t}`
before the bias correction, as in a public implementation; `torch.optim.Adam(amsgrad=True)` adds it
after, so the two agree where :math:`\epsilon` does not matter, and exactly at 0.

Source: Chen et al. 2020 (arXiv 1806.06763), Algorithm 1; bias correction and epsilon as in their
published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError


class Padam(torch.optim.Optimizer):
    """Padam.

    Arguments:
        params: parameters to optimise.
        lr: eta; of the order of momentum's, 0.1, not of Adam's.
        betas: beta_1 and beta_2.
        eps: epsilon.
        partial: p, from 0 to 1/2.
        weight_decay: w.
        decoupled: shrink the parameters by eta w before each step, instead of adding w theta to
            the gradient.
    """

    elementwise = True
    """Every number of a parameter is treated alike (`planimeter.ensembles.stackable`)."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        partial: float = 0.125,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        if not (lr > 0 and eps >= 0 and 0 <= partial <= 0.5 and weight_decay >= 0):
            raise InputError(
                f"Padam needs lr > 0, eps >= 0, partial from 0 to 0.5 and weight_decay >= 0, "
                f"got {lr}, {eps}, {partial}, {weight_decay}"
            )
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1):
            raise InputError(f"Padam needs betas from 0 to below 1, got {betas}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "partial": partial,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, with the gradient that the closure takes where there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, gradient = self.state[p], p.grad
                if not state:
                    state["step"] = 0
                    for name in ("mean", "square", "largest_square"):
                        state[name] = torch.zeros_like(p)
                state["step"] += 1
                if group["decoupled"]:
                    p.mul_(1 - lr * group["weight_decay"])
                elif group["weight_decay"]:
                    gradient = gradient.add(p, alpha=group["weight_decay"])
                state["mean"].lerp_(gradient, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                largest = torch.maximum(state["largest_square"], state["square"])
                state["largest_square"].copy_(largest)
                denominator = largest.sqrt_().add_(group["eps"]).pow_(2 * group["partial"])
                corrections = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                p.addcdiv_(state["mean"], denominator, value=-lr * corrections)
        return loss
