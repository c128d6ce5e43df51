r"""Confidence intervals of a probability from a count.

Wilson's interval holds the probabilities p that the count c of n would not reject at z standard
deviations, :math:`(c/n - p)^2 \le z^2 p (1 - p)/n`:

.. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n} .

Unlike :math:`\hat p \pm z \sqrt{\hat p (1 - \hat p)/n}` it is never outside [0, 1], and keeps a
sensible length at counts of 0 and 1.

Source: Wilson 1927; Brown, Cai & DasGupta 2001.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from planimeter.errors import InputError


def wilson_interval(
    counts: NDArray[np.int64], samples: int, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends of Wilson's intervals.

    Arguments:
        counts: (k,) of successes, each 0 to `samples`.
        samples: at least 1.
        level: of confidence, between 0 and 1.

    Raises:
        InputError: a count or level out of its range.
    """
    if not 0 < level < 1:
        raise InputError(f"a confidence level lies between 0 and 1, got {level}")
    found = np.asarray(counts, dtype=np.float64)
    if samples < 1 or (found < 0).any() or (found > samples).any():
        raise InputError(f"counts must lie between 0 and the {samples} samples")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    p = found / samples
    middle = p + z2 / (2 * samples)
    half = np.sqrt(z2 * (p * (1 - p) / samples + z2 / (4 * samples**2)))
    scale = 1 + z2 / samples
    # At a count of 0 or n the end is 0 or 1 exactly, which rounding would miss.
    lower = np.where(found == 0, 0.0, (middle - half) / scale)
    upper = np.where(found == samples, 1.0, (middle + half) / scale)
    return lower, upper
