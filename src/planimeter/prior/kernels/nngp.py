r"""Covariance of an infinitely wide network's output: the neural-network Gaussian process (NNGP).

For a fully connected ReLU network with weights of variance :math:`\sigma_w^2/\mathrm{fan\_in}` and
biases of variance :math:`\sigma_b^2`,

.. math:: K^0(x, x') = \sigma_b^2 + \sigma_w^2\, x \cdot x' / d, \qquad
          K^{l+1} = \sigma_b^2 + \frac{\sigma_w^2}{2\pi} \sqrt{K^l_{xx} K^l_{x'x'}}
                    \,(\sin t + (\pi - t) \cos t), \quad
          \cos t = \frac{K^l_{xx'}}{\sqrt{K^l_{xx} K^l_{x'x'}}}

(Cho & Saul 2009; Lee et al. 2018; zhang2021, Appendix D). Other layers compose in the same way:
`architecture` reads a user's module as a list of `covariance_steps`, `propagation` runs them on
tiles of pairs, `kernel_tiles` makes the matrix of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.prior.kernels.activations import relu
from planimeter.prior.kernels.architecture import Variances, read_program
from planimeter.prior.kernels.covariance_steps import Activation, Input, Linear, Step
from planimeter.prior.kernels.tiles import Progress, kernel_matrix

ParameterVariances = Mapping[str, float] | Literal["default", "measured"] | None


def fully_connected_kernel(
    x: Float[Tensor, " n *d"],
    x2: Float[Tensor, " m *d"] | None = None,
    *,
    depth: int = 2,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "n m"]:
    """The NNGP kernel of a fully connected ReLU network.

    Arguments:
        x: (n, ...) inputs, flattened to d numbers each.
        x2: (m, ...) other inputs; None for x itself, which gives an exactly symmetric matrix.
        depth: number of hidden layers, at least 0.
        sigma_w, sigma_b: standard deviations of the initial weights (times the root of fan-in)
            and biases; the defaults are zhang2021's.
        dtype: of the computation and the result, torch.float64 or torch.float32.

    Returns:
        the covariance of the outputs at x and x2, on the device of x.

    Raises:
        InputError: inputs that are not finite or of different sizes, or a negative depth.

    Source: zhang2021, Appendix D.
    """
    weight, bias = _squares(sigma_w, sigma_b)
    if depth < 0:
        raise InputError(f"depth must be at least 0 hidden layers, got {depth}")
    steps: list[Step] = [Input((1, 1), (), 0), Linear((1, 1), (0,), weight, bias)]
    for _ in range(depth):
        last = len(steps)
        steps += [
            Activation((1, 1), (last - 1,), relu()),
            Linear((1, 1), (last,), weight, bias),
        ]
    rows, columns = _checked(x, x2, dtype)
    return kernel_matrix(
        tuple(steps),
        [rows.reshape(1, 1, len(rows), -1).mT.contiguous()],
        None if columns is None else [columns.reshape(1, 1, len(columns), -1).mT.contiguous()],
        out=None,
        progress=lambda stage, done, total: None,
    )


def nngp_kernel(
    model: nn.Module,
    x: Float[Tensor, " n *d"],
    x2: Float[Tensor, " m *d"] | None = None,
    *,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
    variances: ParameterVariances = None,
    dtype: torch.dtype = torch.float64,
    out: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Float[Tensor, "n m"]:
    r"""The kernel of a user's own module in the limit of infinite width.

    The module is traced, so it may be written in any way. It may consist of Linear, Conv2d (one
    group), ReLU, leaky ReLU, abs, erf, GELU, tanh, sigmoid, SiLU, average and global average
    pooling, flattening, dropout (which evaluation mode turns off), layer norm over all features (or
    group norm with one group), or over the channels of a grid while they are the last axis,
    multiplication by numbers, and sums of branches of which all but one end in layers of their own.
    What happens to the data before the first layer is computed as it is.

    Arguments:
        model: its widths and weights play no part, the kernel is that of its architecture. A layer
            without a bias has :math:`\sigma_b = 0`. Scale and shift of layer norm count as 1 and 0.
        x: (n, ...) inputs as the model takes them.
        x2: (m, ...) other inputs; None for x itself, which gives an exactly symmetric matrix.
        sigma_w, sigma_b: standard deviations of the initial weights (times the root of fan-in)
            and biases of every layer; the defaults are zhang2021's.
        variances: other variances than these. A mapping from names of parameters, as in
            `model.named_parameters()`, to fan-in times the variance (weights) or the variance
            (biases), sigma_w and sigma_b standing for what it leaves out; "default" for torch's own
            initialisation of Linear and Conv2d, uniform with variance 1/(3 fan-in) for both; or
            "measured" for the mean square of the module's parameters as they are now, which after
            training is no longer that of a prior, and in small layers a noisy estimate.
        dtype: of the computation and the result, torch.float64 or torch.float32, which is twice
            as fast and exact to about 2e-6 of the diagonal.
        out: a .npy file for a result that is too large for memory. It is written in bands of rows;
            the same call takes up an unfinished file again.
        progress: called with "kernel", the rows that are done and n.

    Returns:
        the covariance of one output at x and x2, on the device of x; with `out`, the file mapped
        into memory.

    Raises:
        InputError: an operation without an analytic limit, which is named; memory that does not
            suffice, before anything is computed; inputs that are not finite or do not fit.

    Source: see docs/kernels.md, layer by layer.
    """
    rows, columns = _checked(x, x2, dtype)
    program, prepared = read_program(model, rows, _variances(model, sigma_w, sigma_b, variances))
    return kernel_matrix(
        program,
        prepared(rows),
        None if columns is None else prepared(columns),
        out=None if out is None else Path(out),
        progress=progress,
    )


def check_kernel_exists(model: nn.Module, x: Float[Tensor, " n *d"]) -> None:
    """Refuse at once what `nngp_kernel` would refuse; two rows of x are enough.

    Raises:
        InputError: an operation without an analytic limit, which is named.
    """
    rows, _ = _checked(x[:2], None, torch.float64)
    _, prepared = read_program(model, rows, lambda weight, bias, fan_in: (1.0, 0.0))
    prepared(rows)


def _variances(
    model: nn.Module, sigma_w: float, sigma_b: float, given: ParameterVariances
) -> Variances:
    weight_variance, bias_variance = _squares(sigma_w, sigma_b)
    if given == "default":
        return lambda weight, bias, fan_in: (1 / 3, 1 / (3 * fan_in) if bias else 0.0)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if given == "measured":
        squares = {
            name: float(p.detach().double().square().mean()) for name, p in parameters.items()
        }
        return lambda weight, bias, fan_in: (
            fan_in * squares[weight],
            squares[bias] if bias else 0.0,
        )
    if isinstance(given, str):
        raise InputError(f"variances is 'default', 'measured' or a mapping, not {given!r}")
    named = dict(given or {})
    for name, value in named.items():
        if name not in parameters:
            raise InputError(
                f"variances names {name!r}; the parameters are {', '.join(parameters)}"
            )
        if not 0 <= value < math.inf:
            raise InputError(f"the variance of {name!r} must be at least 0, got {value}")
    return lambda weight, bias, fan_in: (
        named.get(weight, weight_variance),
        named.get(bias, bias_variance) if bias else 0.0,
    )


def _squares(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    if not (0 < sigma_w < math.inf and 0 <= sigma_b < math.inf):
        raise InputError(f"sigma_w must be positive and sigma_b at least 0: {sigma_w}, {sigma_b}")
    return sigma_w**2, sigma_b**2


def _checked(
    x: Tensor, x2: Tensor | None, dtype: torch.dtype
) -> tuple[Float[Tensor, " n *d"], Float[Tensor, " m *d"] | None]:
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"kernels are torch.float64 or torch.float32, not {dtype}")
    if not len(x) or (x2 is not None and not len(x2)):
        raise InputError("there are no inputs")
    if x2 is not None and x[0].numel() != x2[0].numel():
        raise InputError(f"inputs of {x[0].numel()} numbers against inputs of {x2[0].numel()}")
    rows = _finite(x, dtype)
    return rows, None if x2 is None else _finite(x2, dtype)


def _finite(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.detach().to(dtype)
    bad = (~torch.isfinite(x)).reshape(len(x), -1).any(dim=1).nonzero().reshape(-1)
    if len(bad):
        raise InputError(f"input {int(bad[0])} has values that are not finite (NaN or infinity)")
    return x
