r"""Whether a cone is empty, with a certificate.

By Gordan's theorem either some u has :math:`a_i \cdot u > 0` for all i, or some
:math:`y \ge 0,\ y \ne 0` has :math:`\sum_i y_i a_i = 0`: a positive combination of the signed
outputs that is always 0, so that they cannot all be positive. A linear program finds the one,

.. math:: \max t \quad \text{such that} \quad a_i \cdot u \ge t, \quad |u_j| \le 1,

or, in its multipliers, the other. The certificate is then held against the kernel itself: with R
positive semi-definite, :math:`\sum_i y_i z_i` is 0 if and only if :math:`R y = 0`.

Source: Gordan 1873; Dantzig 1963.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.prior.orthant.low_rank import LowRankKernel
from planimeter.prior.orthant.signed_kernel import SignedKernel

# Of numbers that would be 0 but for rounding, in units of it: sums of a few dozen entries.
_ROUNDING = 250.0
# Multipliers below this share of the largest are 0.
_SUPPORT = 1e-9


def has_inside(kernel: LowRankKernel) -> tuple[bool, Int[Tensor, " s"]]:
    """Whether A u > 0 for some u, and the rows that prevent it as far as the program can tell."""
    from scipy.optimize import linprog  # takes a while to import, and is rarely needed

    a = kernel.factor.cpu().numpy()
    n, rank = a.shape
    found = linprog(
        np.append(np.zeros(rank), -1.0),
        A_ub=np.hstack([-a, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        bounds=[(-1.0, 1.0)] * rank + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    if found.status != 0:
        return False, nothing
    if float((a @ found.x[:rank]).min()) > _ROUNDING * kernel.eps:
        return True, nothing
    multipliers = torch.as_tensor(-found.ineqlin.marginals)
    return False, (multipliers > _SUPPORT * multipliers.max()).nonzero().reshape(-1)


def is_contradiction(kernel: SignedKernel, rows: Int[Tensor, " s"]) -> bool:
    """Whether a positive combination of these outputs is always 0, to the kernel's rounding."""
    if len(rows) < 2:
        return False
    exact = replace(kernel, floor=0.0)
    among: Float[Tensor, "s n"] = exact.rows_at(rows.to(kernel.device))
    combination = torch.linalg.eigh(among[:, rows])[1][:, 0]
    combination = combination / combination.sum()
    if not bool((combination > 0).all()):
        return False
    return float((combination @ among).abs().max()) <= _ROUNDING * kernel.eps
