r"""Positive rescalings of a network's parameters that leave its outputs unchanged.

Where every channel :math:`c` of an activation passes through positively homogeneous operations
only, :math:`\phi(d\,x) = d\,\phi(x)` for :math:`d > 0`, and

.. math:: W_{i+1}\,\phi(W_i x + b_i) =
          W_{i+1} D^{-1}\,\phi(D W_i x + D b_i), \qquad D = \mathrm{diag}(d_1, \dots, d_C).

BatchNorm in evaluation mode undoes a rescaling of its input with its running statistics instead:
:math:`\mu \to d\mu` and :math:`v \to d^2 (v + \epsilon) - \epsilon`.

Source: Dinh et al. 2017; zhang2021, Eq. 1 and Appendix F; rangamani2019, Section 3 (neuron-wise).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.errors import InputError
from planimeter.printing import short_repr

SHOWN = 12
"""Rescalings and reasons that are printed."""
VARIANCE_SLACK = 1e-12
"""Part of BatchNorm's epsilon that a rescaled variance of zero may miss zero by."""


@dataclass(frozen=True, eq=False)
class Scaling:
    r"""What a rescaling by factors d does to one tensor.

    Arguments:
        tensor: name of a parameter or buffer t.
        power: 1 where t is multiplied by d, -1 where it is divided; another where d enters a
            product several times.
        channel: of the shape of t, or one that broadcasts to it: which factor each entry takes,
            -1 for none.
        epsilon: None; or for a running variance that of its BatchNorm,
            and :math:`t \to d^2 (t + \epsilon) - \epsilon`.
    """

    tensor: str
    power: float
    channel: Int[Tensor, "*shape"]
    epsilon: float | None = None

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True, eq=False)
class Rescaling:
    """One positive rescaling that leaves the outputs in evaluation mode unchanged.

    Arguments:
        name: the layers that are multiplied and those that make up for it, "conv1 → conv2".
        kind: "linear" (weights make up for weights) or "batch_norm" (running statistics do).
        channels: number of factors; 1 where only the layer as a whole can be rescaled.
        layers: those that are multiplied.
        whole: whether one factor for all channels multiplies every tensor by one number.
        smallest: factors below these would make a running variance negative; zeros without one.
        scalings: what happens to each tensor.
    """

    name: str
    kind: str
    channels: int
    layers: tuple[str, ...] = field(repr=False)
    smallest: Float[Tensor, " channels"] = field(repr=False)
    scalings: tuple[Scaling, ...] = field(repr=False)
    whole: bool = field(default=True, repr=False)

    def apply(self, state: Mapping[str, Tensor], factor: float | Tensor) -> dict[str, Tensor]:
        """The state after the rescaling; what it does not touch is passed on.

        Arguments:
            state: parameters and buffers by name.
            factor: positive; a scalar, or of shape (channels,).

        Returns:
            A new dict. Changed tensors are new ones of the same dtype, device and requires_grad.

        Raises:
            InputError: a factor is not positive and finite, of the wrong shape, or makes a running
                variance of BatchNorm negative; or the state lacks a tensor.
        """
        factors = self._checked(factor)
        result = dict(state)
        for scaling in self.scalings:
            if scaling.tensor not in result:
                raise InputError(f"the state has no tensor {scaling.tensor!r}, which {self} needs")
            result[scaling.tensor] = self._scaled(result[scaling.tensor], scaling, factors)
        return result

    def __str__(self) -> str:
        return f"the rescaling {self.name!r}"

    # -- private ------------------------------------------------------------------------------

    def _checked(self, factor: float | Tensor) -> Float[Tensor, " channels"]:
        factors = torch.as_tensor(factor, dtype=torch.float64).detach().cpu()
        if factors.ndim and factors.shape != (self.channels,):
            raise InputError(
                f"{self} takes a number or {self.channels} factors, got shape "
                f"{tuple(factors.shape)}"
            )
        if not bool(((factors > 0) & torch.isfinite(factors)).all()):
            raise InputError(f"{self} takes positive factors, got {float(factors.min()):g}")
        return factors.expand(self.channels)

    def _scaled(self, tensor: Tensor, scaling: Scaling, factors: Tensor) -> Tensor:
        # The last entry is that of channel -1, which is not rescaled.
        by = torch.cat([factors, factors.new_ones(1)])[scaling.channel].to(tensor.device)
        old = tensor.detach().double()
        if scaling.epsilon is None:
            new = old / by if scaling.power == -1 else old * by**scaling.power
        else:
            new = by.square() * (old + scaling.epsilon) - scaling.epsilon
            new = torch.where(by == 1, old, new)
            if bool(((new < -VARIANCE_SLACK * scaling.epsilon) & (old >= 0)).any()):
                bound = math.sqrt(scaling.epsilon / (float(old.min()) + scaling.epsilon))
                raise InputError(
                    f"{self} by {float(factors.min()):.4g} makes a variance in "
                    f"{scaling.tensor!r} negative: factors of {bound:.4g} and more are safe"
                )
        return new.to(tensor.dtype).requires_grad_(tensor.requires_grad)


@dataclass(frozen=True, eq=False, repr=False)
class Rescalings(Sequence[Rescaling]):
    """The rescalings of a network, in the order in which it computes.

    They commute, and their factors are independent of each other.

    Arguments:
        found: what can be rescaled.
        refused: what cannot, and why, in words.
    """

    found: tuple[Rescaling, ...]
    refused: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.found[index]

    def __iter__(self) -> Iterator[Rescaling]:
        return iter(self.found)

    def __str__(self) -> str:
        lines = [f"{r.name}: {r.channels} factors" for r in self.found[:SHOWN]]
        if len(self.found) > SHOWN:
            lines.append(f"and {len(self.found) - SHOWN} more rescalings")
        lines = lines or ["none found"]
        lines += [f"not rescaled: {reason}" for reason in self.refused[:SHOWN]]
        if len(self.refused) > SHOWN:
            lines.append(f"and {len(self.refused) - SHOWN} more reasons")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Rescalings({len(self.found)} found, {len(self.refused)} layers refused)"

    def layer_factors(self, generator: torch.Generator, spread: float) -> list[Tensor]:
        """A random factor for each rescaling, log-uniform in [1/spread, spread].

        Where BatchNorm's variances allow no such small factor, the smallest one that they allow.

        Arguments:
            generator: of the random numbers, on the CPU.
            spread: at least 1.

        Returns:
            A scalar for each rescaling.

        Raises:
            InputError: spread is below 1.
        """
        return [
            _log_uniform((), spread, generator).clamp(min=rescaling.smallest.max())
            for rescaling in self.found
        ]

    def neuron_factors(self, generator: torch.Generator, spread: float) -> list[Tensor]:
        """As `layer_factors`, with a factor of its own for each channel: shapes (channels,)."""
        return [
            _log_uniform((rescaling.channels,), spread, generator).clamp(min=rescaling.smallest)
            for rescaling in self.found
        ]

    def apply(
        self, state: Mapping[str, Tensor], factors: Sequence[float | Tensor]
    ) -> dict[str, Tensor]:
        """The state after all rescalings (`Rescaling.apply`), one factor for each.

        Raises:
            InputError: the number of factors is not that of the rescalings, or one does not fit.
        """
        if len(factors) != len(self.found):
            raise InputError(
                f"{len(self.found)} rescalings take as many factors, got {len(factors)}"
            )
        result = dict(state)
        for rescaling, factor in zip(self.found, factors, strict=True):
            result = rescaling.apply(result, factor)
        return result


def _log_uniform(shape: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    if not 1 <= spread < math.inf:
        raise InputError(f"factors are drawn from [1/spread, spread], spread >= 1, got {spread}")
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.exp((2 * uniform - 1) * math.log(spread))
