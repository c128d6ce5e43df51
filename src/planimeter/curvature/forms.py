r"""The error of a mean of quadratic forms :math:`v^T B v`, v uniform on the sphere of dimension d.

Its variance is known from the eigenvalues, whose mean is a, and so is its skewness to first order,

.. math:: \mathrm{Var} = \frac{2}{d + 2}\, \overline{(\beta_i - a)^2}, \qquad
          g = \frac{8 \sum_i (\beta_i - a)^3}{\big(2 \sum_i (\beta_i - a)^2\big)^{3/2}},

and quadrature gives both means with the estimate itself. The spread of a handful of forms says far
less: where one eigenvalue dominates, a set of probes that misses it is low *and* agrees too well.
What is left of that (the variance is low together with the mean) is of the order of
:math:`g^2 / n`, by which the error is widened.

Measured (3,000 draws; flat, 1/k, 1/k^2, outliers and bulk, one outlier, indefinite; n = 2 to 32
probes): intervals of 95 % cover 92 to 98 % with 4 probes and 93 to 97 % from 8 on; the spread with
Student's t covers 82 to 95 %.
"""

from __future__ import annotations

import math

WIDER = 1 / 12
"""The error grows by this part of the squared skewness of the mean."""


def mean_form_error(
    variance: float, third: float, dimension: int, count: int, *, of_root: bool = False
) -> float:
    """The standard error of the mean of `count` forms.

    Arguments:
        variance, third: mean powers 2 and 3 of the eigenvalues' distance from their mean.
        dimension: d.
        count: of forms.
        of_root: the error serves the root of the mean, whose distribution is hardly skewed.
    """
    if variance <= 0:
        return 0.0
    error = math.sqrt(2 * variance / ((dimension + 2) * count))
    if of_root:
        return error
    # In units of the deviation, so that no power leaves the range of floats.
    skewness = math.sqrt(8 / dimension) * (third / variance) / math.sqrt(variance)
    return error * (1 + WIDER * min(skewness**2, 8.0) / count)
