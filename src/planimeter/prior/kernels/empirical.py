r"""The covariance of a network's output, measured on random networks instead of derived.

For a module that ends in a linear layer, with a the activations that enter it,

.. math:: K(x, x') = \frac{\sigma_w^2}{M n} \sum_{m=1}^M \sum_{c=1}^n
                     a_c^{(m)}(x)\, a_c^{(m)}(x') + \sigma_b^2 :

the covariance of the output given the hidden layers, exact over the last layer's weights, and
averaged over M random networks for the rest. Whatever comes before may be anything that runs:
convolutions, pooling, attention.

**Noise of the kernel.** K is a mean over networks, and log P(f) a function of K that bends: noise
in K makes log P(f) noisy and, on average, wrong. Both are estimated by the jackknife that deletes a
group of networks at a time. With :math:`\theta` the log-probability on K, and
:math:`\theta_{(j)}` on the K of all networks but those of group j of g,

.. math:: \mathrm{se}^2 = \frac{g - 1}{g} \sum_j (\theta_{(j)} - \bar\theta)^2, \qquad
          \mathrm{bias} = (g - 1)(\bar\theta - \theta), \qquad
          \bar\theta = \frac1g \sum_j \theta_{(j)} .

K has rank at most :math:`M n` (one more with biases). Of fewer networks than inputs over width,
log P is that of a cone in as many dimensions, and -inf for labels that no function of them has.

Source: zhang2021, Eq. 7 and Appendix D; Novak et al. 2019; Efron & Tibshirani 1993, Chapter 11.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.network.modes import evaluation_mode
from planimeter.printing import short_repr
from planimeter.prior.kernels.initialisation import check_deviations, reset_all_parameters
from planimeter.prior.kernels.last_hidden import LastLayer, find_last_layer, last_hidden

_PANEL = 512
"""Columns of activations that are gathered before they are multiplied: a rank-40 update of a large
matrix is bound by memory, a rank-512 one is not."""
_ROW_BYTES = 1 << 26
"""Of one block of rows of the kernel, in the products' workspace."""


@dataclass(frozen=True)
class EmpiricalKernel:
    """A kernel measured on random networks.

    Arguments:
        kernel: (n, n) on the device of the networks, float64.
        groups: (g, n, n) the kernels of each group of networks alone, of equal weight; their mean
            is `kernel`. Empty without a jackknife.
        networks: M, all of them used.
        layer: name of the last linear layer.
        width: number of activations that enter it.
        sigma_w, sigma_b: standard deviations of the last layer's weights (times the root of its
            fan-in) and bias.
        noise: variance that the kernel is meant to be used with.
        batch_norm: how BatchNorm ran.
        batch_size: rows at a time, which BatchNorm's statistics depend on unless in eval mode.
        seed: of the networks.
    """

    kernel: Float[Tensor, "n n"] = field(repr=False)
    groups: Float[Tensor, "g n n"] = field(repr=False)
    networks: int
    layer: str
    width: int
    sigma_w: float
    sigma_b: float
    noise: float
    batch_norm: str
    batch_size: int
    seed: int

    def __repr__(self) -> str:
        return short_repr(self)


def empirical_kernel(
    network: nn.Module | Callable[[], nn.Module],
    x: Shaped[Tensor, "n ..."],
    *,
    networks: int | None = None,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
    noise: float = 0.0,
    layer: str | None = None,
    initialise: Callable[[nn.Module], None] | None = None,
    batch_norm: str = "eval",
    batch_size: int = 250,
    groups: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmpiricalKernel:
    r"""The kernel of a module's output at x, from M random networks.

    .. math:: K(x, x') = \frac{\sigma_w^2}{M n} \sum_m \sum_c a_c^{(m)}(x)\, a_c^{(m)}(x')
                         + \sigma_b^2 .

    Memory: (g + 1) n^2 doubles for the kernel and the jackknife's groups, one network's
    activations on a batch, and the larger of 512 and its width in doubles for each input.

    Arguments:
        network: a module, whose weights are drawn anew (in a copy) for each of the networks by
            every layer's `reset_parameters`, or by `initialise`; or a function that makes a new
            random network, using torch's generator, which is seeded for each.
        x: (n, ...) inputs, S and E together; they are moved to the network's device and dtype in
            batches.
        networks: M, rounded up to a multiple of `groups`; default 0.1 n, as in the paper, and at
            least `groups`.
        sigma_w, sigma_b: standard deviations of the last layer's weights (times the root of its
            fan-in) and bias. They need not be what the hidden layers were drawn with.
        noise: variance that will be added to the kernel's diagonal.
        layer: name of the last linear layer; default the one that runs last.
        initialise: draws a module's weights in place, such as
            `gaussian_initialisation(sigma_w, sigma_b)`, which the analytic kernels assume.
        batch_norm: "eval", by the running statistics, which in a new network are 0 and 1; or
            "train-frozen-buffers", by those of each batch, so that K depends on `batch_size`.
        batch_size: rows at a time.
        groups: g of the jackknife, at least 3; 0 for none.
        seed: network m is drawn from (seed, m).
        progress: called with the networks done and their number.

    Raises:
        InputError: layers that cannot be drawn again (they are named), no last linear layer, or an
            argument out of its range.

    Source: zhang2021, Eq. 7 and Appendix D.
    """
    check_deviations(sigma_w, sigma_b)
    n = len(x)
    _check_numbers(n, networks, groups, batch_size, noise)
    step = max(groups, 1)
    count = step * math.ceil((math.ceil(0.1 * n) if networks is None else networks) / step)
    make = _maker(network, initialise)
    found: LastLayer | None = None
    sums: _GroupSums | None = None
    for m in range(count):
        model = _seeded(make, _device(network), seed, m)
        like = next(model.parameters(), torch.zeros(()))
        # Tokens and other whole numbers are moved, not converted.
        place = like if x.is_floating_point() else like.device
        batches = [rows.to(place) for rows in x.detach().split(batch_size)]
        with evaluation_mode(model, batch_norm):
            if found is None or sums is None:
                found = find_last_layer(model, batches[0], layer)
                sums = _GroupSums(n, found.width, step, count // step, like.device)
            last_hidden(model, found.name, batches, sums.take)
        sums.network_done()
        progress(m + 1, count)
    assert found is not None
    assert sums is not None
    parts = sums.kernels()
    parts *= sigma_w**2
    parts += sigma_b**2
    return EmpiricalKernel(
        kernel=parts.mean(dim=0),
        groups=parts if groups else parts[:0],
        networks=count,
        layer=found.name,
        width=found.width,
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        noise=noise,
        batch_norm=batch_norm,
        batch_size=batch_size,
        seed=seed,
    )


class _GroupSums:
    r"""Sums of :math:`a(x) \cdot a(x')` over the networks of each group, in place."""

    def __init__(self, n: int, width: int, groups: int, each: int, device: torch.device) -> None:
        self.width, self.each = width, each
        self.sums = torch.zeros(groups, n, n, dtype=torch.float64, device=device)
        at_once = min(max(_PANEL // width, 1), each)
        self.panel = torch.empty(n, at_once, width, dtype=torch.float64, device=device)
        self.held, self.done = 0, 0

    def take(self, row: int, activations: Float[Tensor, "rows width"]) -> None:
        """Keep a batch of the current network, which starts at the row."""
        self.panel[row : row + len(activations), self.held] = activations.to(torch.float64)

    def network_done(self) -> None:
        """All rows of the current network were taken."""
        self.held += 1
        self.done += 1
        if self.held == self.panel.shape[1] or self.done % self.each == 0:
            panel = self.panel[:, : self.held].flatten(1)
            total = self.sums[(self.done - 1) // self.each]
            rows = max(_ROW_BYTES // (8 * len(panel)), 1)
            for start in range(0, len(panel), rows):
                total[start : start + rows].addmm_(panel[start : start + rows], panel.T)
            self.held = 0

    def kernels(self) -> Float[Tensor, "groups n n"]:
        """The mean of the products over networks and units, in each group."""
        return self.sums.div_(self.each * self.width)


def _maker(
    network: nn.Module | Callable[[], nn.Module], initialise: Callable[[nn.Module], None] | None
) -> Callable[[], nn.Module]:
    """What makes the next random network, from torch's generator."""
    if isinstance(network, nn.Module):
        drawn, draw = copy.deepcopy(network), initialise or reset_all_parameters

        def again() -> nn.Module:
            draw(drawn)
            return drawn

        return again
    if initialise is None:
        return network
    factory, draw = network, initialise

    def new() -> nn.Module:
        made = factory()
        draw(made)
        return made

    return new


def _seeded(make: Callable[[], nn.Module], device: torch.device, seed: int, m: int) -> nn.Module:
    """Make network m under its own seed; torch's generators are as before afterwards."""
    number = np.random.SeedSequence(seed, spawn_key=(m,)).generate_state(1, np.uint64)[0]
    accelerated = device.type != "cpu"
    fork = torch.random.fork_rng(
        devices=[device] if accelerated else [], device_type=device.type if accelerated else "cuda"
    )
    with fork:
        torch.manual_seed(int(number >> np.uint64(1)))
        return make()


def _device(network: nn.Module | Callable[[], nn.Module]) -> torch.device:
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next(parameters, torch.zeros(())).device


def _check_numbers(
    n: int, networks: int | None, groups: int, batch_size: int, noise: float
) -> None:
    if n < 1 or batch_size < 1 or (networks is not None and networks < 1):
        raise InputError(
            f"inputs, networks and batch_size must be at least 1, got {n}, {networks} and "
            f"{batch_size}"
        )
    if groups != 0 and groups < 3:
        raise InputError(f"a jackknife needs at least 3 groups, or 0 for none, got {groups}")
    if not 0 <= noise < math.inf:
        raise InputError(f"noise is a finite variance and cannot be negative: {noise}")
