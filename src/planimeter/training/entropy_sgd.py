r"""Entropy-SGD: descent on the local entropy, which prefers wide valleys.

Outer step t from x: L inner steps of stochastic gradient Langevin dynamics around x,

.. math:: g = \nabla \ell(w) - \gamma_t (x - w), \quad
          w \leftarrow w - \eta' g + \sqrt{2 \eta'}\, \varepsilon\, N(0, I), \quad
          \mu \leftarrow \alpha \mu + (1 - \alpha) w,

from :math:`w = \mu = x`, and then a step with Nesterov momentum along :math:`x - \mu`, where
:math:`\gamma_t = \gamma_0 (1 + \gamma_1)^t`.

Source: Chaudhari et al. 2017 (arXiv 1611.01838), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError


class EntropySGD(torch.optim.Optimizer):
    """Entropy-SGD.

    Arguments:
        params: parameters to optimise.
        lr: eta of the outer step.
        momentum: Nesterov momentum of the outer step.
        inner_lr: eta' of the Langevin steps.
        inner_steps: L; each evaluates the closure once.
        averaging: alpha.
        thermal_noise: epsilon.
        gamma, scoping: gamma_0 and gamma_1.
        seed: of the Langevin noise.

    `step` needs a closure that takes the gradient on the *next* mini-batch each time it is called.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        inner_lr: float = 0.1,
        inner_steps: int = 20,
        averaging: float = 0.75,
        thermal_noise: float = 1e-4,
        gamma: float = 1e-4,
        scoping: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not (lr > 0 and inner_lr > 0 and inner_steps >= 1 and 0 <= averaging < 1):
            raise InputError(
                f"Entropy-SGD needs lr > 0, inner_lr > 0, inner_steps >= 1 and 0 <= averaging < 1, "
                f"got {lr}, {inner_lr}, {inner_steps}, {averaging}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "inner_lr": inner_lr,
            "inner_steps": inner_steps,
            "averaging": averaging,
            "thermal_noise": thermal_noise,
            "gamma": gamma,
            "scoping": scoping,
        }
        super().__init__(params, defaults)
        if len({group["inner_steps"] for group in self.param_groups}) > 1:
            raise InputError("all groups of Entropy-SGD have the same number of inner_steps")
        self._generator = torch.Generator().manual_seed(seed)
        self._outer_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """The state with the step count and the noise generator: a resumed run is exact."""
        extra = {"outer_steps": self._outer_steps, "generator": self._generator.get_state()}
        return super().state_dict() | {"entropy_sgd": extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        state_dict = dict(state_dict)
        extra = state_dict.pop("entropy_sgd")
        super().load_state_dict(state_dict)
        self._outer_steps = extra["outer_steps"]
        self._generator.set_state(extra["generator"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One outer step: `inner_steps` calls of the closure, then a move to their average."""
        if closure is None:
            raise InputError(
                "Entropy-SGD needs a closure that takes the next mini-batch's gradient"
            )
        starts = [_Start(group["params"]) for group in self.param_groups]
        loss = None
        for _ in range(self.param_groups[0]["inner_steps"]):
            with torch.enable_grad():
                loss = closure()
            for group, start in zip(self.param_groups, starts, strict=True):
                self._langevin(group, start)
        for group, start in zip(self.param_groups, starts, strict=True):
            self._outer(group, start)
        self._outer_steps += 1
        return loss

    def _langevin(self, group: dict[str, Any], start: _Start) -> None:
        params, inner_lr = group["params"], group["inner_lr"]
        gamma = group["gamma"] * (1 + group["scoping"]) ** self._outer_steps
        kick = math.sqrt(2 * inner_lr) * group["thermal_noise"]
        used = [i for i, p in enumerate(params) if p.grad is not None]
        live = [params[i] for i in used]
        pull = torch._foreach_sub(live, [start.anchors[i] for i in used])
        force = torch._foreach_add([p.grad for p in live], pull, alpha=gamma)
        torch._foreach_add_(live, force, alpha=-inner_lr)
        if kick:
            torch._foreach_add_(live, self._noise(group, live), alpha=kick)
        torch._foreach_lerp_(start.averages, params, 1 - group["averaging"])

    def _noise(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """Standard normal numbers in the shapes of the parameters."""
        return [
            torch.randn(p.shape, generator=self._generator, dtype=p.dtype).to(p.device)
            for p in params
        ]

    def _outer(self, group: dict[str, Any], start: _Start) -> None:
        for p, x, mu in zip(group["params"], start.anchors, start.averages, strict=True):
            direction = x - mu
            if group["momentum"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                velocity.mul_(group["momentum"]).add_(direction)
                direction = direction + group["momentum"] * velocity
            p.copy_(x - group["lr"] * direction)


class _Start:
    """x, and the average mu of the inner steps from there."""

    def __init__(self, params: list[Tensor]) -> None:
        self.anchors = [p.clone() for p in params]
        self.averages = [p.clone() for p in params]
