r"""One Gaussian variable restricted to the positive half-line: moments, cumulants, draws.

For :math:`z \sim N(m, s^2)` given :math:`z > 0`, with :math:`h = m/s` and the inverse Mills ratio
:math:`r(h) = \varphi(h)/\Phi(h)`,

.. math:: E z = m + s r, \quad \mathrm{Var}\, z = s^2 (1 - r (r + h)), \quad
          \kappa_l = s^l \,\frac{d^l}{dh^l} \log \Phi(h) \quad (l \ge 3).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import erfcx, log_ndtr, ndtr, ndtri

# Below this h, Phi(h) u can underflow and the draw is made in the log domain instead.
_FAR_TAIL = -30.0
# Below this probability the inverse error function has lost eight of sixteen digits.
_TAIL = 1e-7
_LARGEST_BELOW_ONE = 1 - 2**-53
# Below this h, moments come from asymptotic series, here good to 1e-10.
_CANCELLATION = -60.0
# The same for third and fourth cumulants, which cancel sooner; good to 1e-6.
_CUMULANT_CANCELLATION = -20.0


def inverse_mills(h: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """phi(h) / Phi(h), without overflow for very negative h, where erfcx keeps every digit."""
    negative = math.sqrt(2 / math.pi) / erfcx(h.clamp_max(0.0) * -math.sqrt(0.5))
    positive = torch.exp(-0.5 * h.square()) / math.sqrt(2 * math.pi) / ndtr(h)
    return torch.where(h < 0, negative, positive)


def moments(
    mean: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """log P(z > 0), and the mean and variance of z given z > 0."""
    scale = variance.sqrt()
    h = mean / scale
    r = inverse_mills(h)
    # r + h and 1 - r (r + h) cancel in the far tail: there, their asymptotic series in 1/h.
    far = h < _CANCELLATION
    u = 1 / h.clamp_max(_CANCELLATION).square()
    excess = torch.where(far, -h * u * (1 - 2 * u + 10 * u**2 - 74 * u**3), r + h)
    shrinkage = torch.where(far, u * (1 - 6 * u + 50 * u**2 - 518 * u**3), 1 - r * (r + h))
    return log_ndtr(h), scale * excess, variance * shrinkage


def third_and_fourth_cumulants(
    mean: Float[Tensor, " n"], variance: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """kappa_3 and kappa_4 of z given z > 0."""
    scale = variance.sqrt()
    h = mean / scale
    r = inverse_mills(h)
    slope = -r * (r + h)  # r'
    bracket = (r + h) * (2 * r + h) - 1
    third = r * bracket
    fourth = slope * bracket + r * ((slope + 1) * (2 * r + h) + (r + h) * (2 * slope + 1))
    far = h < _CUMULANT_CANCELLATION
    v = 1 / h.clamp_max(_CUMULANT_CANCELLATION)
    third = torch.where(far, v**3 * (-2 + 24 * v**2 - 300 * v**4 + 4144 * v**6), third)
    fourth = torch.where(far, v**4 * (6 - 120 * v**2 + 2100 * v**4 - 37296 * v**6), fourth)
    return scale**3 * third, scale**4 * fourth


def draw(
    h: Float[Tensor, "*n"], u: Float[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    r"""A standard normal x given x > -h, and log Phi(h): :math:`x = -\Phi^{-1}(u\, \Phi(h))`.

    Arguments:
        h: (...) minus the bounds.
        u: (...) uniform on (0, 1].
    """
    mass = 0.5 * torch.erfc(h * -math.sqrt(0.5))
    q = (u * mass).clamp_max(_LARGEST_BELOW_ONE)
    # erf and its inverse are several times faster than ndtri, and good enough but in the far tail.
    x = torch.erfinv(1 - 2 * q) * math.sqrt(2.0)
    log_mass = mass.log()
    if float(q.min()) < _TAIL:
        tail = q < _TAIL
        x[tail] = -ndtri(q[tail])
        far = h < _FAR_TAIL
        log_mass[far] = log_ndtr(h[far])
        x[far] = -inverse_log_ndtr(u[far].log() + log_mass[far])
    return x, log_mass


def inverse_log_ndtr(log_p: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """x with log Phi(x) = log_p, for very negative log_p, by Newton from the asymptote."""
    x = -(-2 * log_p - (-2 * log_p).log() - math.log(2 * math.pi)).sqrt()
    for _ in range(4):
        x = x - (log_ndtr(x) - log_p) / inverse_mills(x)
    return x
