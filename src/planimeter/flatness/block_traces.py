"""Traces of a curvature by weight matrix, and what goes into the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature.stochastic import identity_columns, rademacher
from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import skewed_standard_error
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator
from planimeter.printing import short_repr

Progress = Callable[[int, int], None]
WIDTH = 16


def weight_names(landscape: LossLandscape) -> list[str]:
    """Parameters that are matrices or kernels, (outputs, inputs, ...).

    Raises:
        NotApplicableError: there are none.
    """
    names = [name for name, value in landscape.parameters.items() if value.ndim >= 2]
    if not names:
        raise NotApplicableError("the network has no weight matrix or kernel")
    return names


@dataclass(frozen=True)
class BlockTraces:
    """Traces of the diagonal blocks of a matrix.

    Arguments:
        names: of the blocks.
        samples: (s, blocks) one unbiased estimate a row, or a single exact row.
        exact: whether every coordinate was probed.
        products: spent.
    """

    names: tuple[str, ...]
    samples: Float[Tensor, "s b"]
    exact: bool
    products: int

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def values(self) -> Float[Tensor, " b"]:
        """The traces."""
        return self.samples.mean(0)

    def combined(self, weights: Float[Tensor, " b"]) -> tuple[float, float]:
        """The sum of the traces with weights, and its standard error."""
        sums = self.samples @ weights
        return float(sums.mean()), 0.0 if self.exact else skewed_standard_error(sums)

    def method(self) -> str:
        """How, in words."""
        return "exact traces" if self.exact else f"Hutchinson, {len(self.samples)} probes"


def block_traces(
    operator: CurvatureOperator,
    *,
    probes: int,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> BlockTraces:
    r"""The traces of all diagonal blocks at once, :math:`E[z_b \cdot (A z)_b]` for random signs z.

    Other blocks add to the spread, but not to the mean. From P probes on, the coordinates are
    probed one by one and the traces are exact.
    """
    if probes < 2:
        raise InputError(f"an error needs at least 2 probes, got {probes}")
    parts = list(operator.blocks.values())
    exact = probes >= operator.size
    if exact:
        columns = identity_columns(operator, WIDTH)
    else:
        generator = torch.Generator().manual_seed(seed)
        widths = [min(WIDTH, probes - start) for start in range(0, probes, WIDTH)]
        columns = (rademacher(operator, width, generator) for width in widths)
    rows, total = [], operator.size if exact else probes
    for block in columns:
        terms = block * (operator @ block)
        rows.append(torch.stack([terms[part].sum(0) for part in parts], dim=1))
        progress(sum(map(len, rows)), total)
    samples = torch.cat(rows)
    return BlockTraces(
        tuple(operator.blocks), samples.sum(0, keepdim=True) if exact else samples, exact, total
    )


def input_deviations(
    landscape: LossLandscape, names: list[str]
) -> dict[str, Float[Tensor, " inputs"]]:
    """The standard deviation over the data of every input feature (channel) of named weights.

    Raises:
        NotApplicableError: a weight belongs to a module that takes no tensor of its features.
    """
    sums: dict[str, list[Tensor]] = {}
    handles = []

    def watch(name: str) -> Callable[..., None]:
        width = landscape.parameters[name].shape[1]

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().double()
            convolves = isinstance(module, torch.nn.modules.conv._ConvNd)
            rows = x.movedim(1, -1).reshape(-1, x.shape[1]) if convolves else x.flatten(0, -2)
            if rows.shape[1] != width:
                raise NotApplicableError(
                    f"the inputs of {name!r} have {rows.shape[1]} features, the weight {width}: "
                    f"features of grouped convolutions are not normalised"
                )
            own = sums.setdefault(name, [torch.zeros_like(rows[0]) for _ in range(3)])
            own[0] += len(rows)
            own[1] += rows.sum(0)
            own[2] += rows.square().sum(0)

        return hook

    try:
        for name in names:
            module = landscape.model.get_submodule(name.rpartition(".")[0])
            if not isinstance(module, torch.nn.Linear | torch.nn.modules.conv._ConvNd):
                raise NotApplicableError(f"the inputs of {name!r} are not features of a layer")
            handles.append(module.register_forward_pre_hook(watch(name)))
        with torch.no_grad(), landscape.mode():
            for _, _, (inputs, _) in landscape.function.pieces(uncounted=True):
                landscape.forward(landscape.parameters, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (squares / count - (total / count).square()).clamp_min(0).sqrt()
        for name, (count, total, squares) in sums.items()
    }
