r"""How much of a column's spread is its members' and how much the error of measuring them.

A correlation with noisy numbers is weaker than that with the true ones, by the square root of

.. math:: R = 1 - \frac{\overline{\sigma^2}}{\mathrm{var}(x)},

the share of the variance of x that is not measurement error.

Source: Spearman 1904 (attenuation).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LEAST = 0.25
"""Below this reliability errors hide the differences: what is left says nothing about them."""


def reliability(values: Float[np.ndarray, " n"], errors: Float[np.ndarray, " n"]) -> float:
    """R of a column, in [0, 1]; 1 without errors.

    Arguments:
        values, errors: finite; standard errors at least 0.
    """
    noise = float(np.mean(np.square(errors)))
    if noise == 0:
        return 1.0
    spread = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    return max(0.0, 1 - noise / spread) if spread > 0 else 0.0


def rank_reliability(
    values: Float[np.ndarray, " n"], errors: Float[np.ndarray, " n"], *, draws: int = 200
) -> float:
    r"""R as ranks see it: no transformation of the values may matter to them.

    Noise is added once more: the correlation of the ranks before and after, as that of two normal
    variables, is :math:`1/\sqrt{1 + u}` with u the noise per observed variance, and R = 1 - u.

    Arguments:
        values, errors: as above.
        draws: repetitions of the noise, always the same ones.
    """
    if not (np.asarray(errors) > 0).any():
        return 1.0
    if np.ptp(values) == 0:
        return 0.0
    rng = np.random.default_rng(0)
    noisy = values + errors * rng.normal(size=(draws, len(values)))
    before = values.argsort().argsort()
    after = noisy.argsort(1).argsort(1)
    centred = before - before.mean()
    rho = float(np.mean((after - after.mean(1, keepdims=True)) @ centred) / (centred @ centred))
    normal = 2 * np.sin(np.pi / 6 * np.clip(rho, 1e-6, 1))
    return float(np.clip(2 - 1 / normal**2, 0, 1))
