r"""Learning rates over the epochs, as factors of the optimiser's own rate.

A schedule is a function of the number of epochs done, e = 0, 1, ..., that gives the factor of the
rate in the epoch that follows. With :math:`t = e / T`:

.. math:: \text{linear: } f = \begin{cases} 1 & t \le 0.5 \\
          1 - (1 - r)(t - 0.5) / 0.4 & 0.5 < t \le 0.9 \\ r & t > 0.9 \end{cases}
          \qquad \text{steps: } f = s^{\lfloor e / k \rfloor}.

granziol2020 trains with the first, r = 0.01 over all epochs; with weight averaging T is the epoch
where averaging starts and r the rate kept from there on (SWA 0.1 to 0.05, Gadam to a half).
rangamani2019 halves the rate every 30 epochs.

Sources: granziol2020 and Izmailov et al. 2018 (arXiv 1803.05407), published code; rangamani2019,
published code.
"""

from __future__ import annotations

from collections.abc import Callable

from planimeter.errors import InputError

Schedule = Callable[[int], float]
"""Epochs done to the factor of the learning rate in the next one."""


def constant(epoch: int) -> float:
    """The optimiser's rate throughout."""
    return 1.0


def linear_decay(epochs: int, ratio: float = 0.01) -> Schedule:
    """Constant for half the epochs, linear until 0.9 of them, then `ratio`.

    Arguments:
        epochs: T, at least 1.
        ratio: r, from 0 to 1.

    Raises:
        InputError: a value is out of its range.
    """
    if epochs < 1 or not 0 <= ratio <= 1:
        raise InputError(
            f"a linear schedule needs epochs >= 1 and a ratio from 0 to 1: {epochs}, {ratio}"
        )

    def factor(epoch: int) -> float:
        t = epoch / epochs
        if t <= 0.5:
            return 1.0
        return 1 - (1 - ratio) * (t - 0.5) / 0.4 if t <= 0.9 else ratio

    return factor


def steps(every: int = 30, factor: float = 0.5) -> Schedule:
    """The rate times `factor` after every so many epochs.

    Raises:
        InputError: `every` is below 1, or `factor` not positive.
    """
    if every < 1 or not factor > 0:
        raise InputError(f"steps need every >= 1 and factor > 0: {every}, {factor}")
    return lambda epoch: factor ** (epoch // every)
