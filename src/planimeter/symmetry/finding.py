"""The rescalings of a user's network, found from the operations that it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.landscape import Trace, recorded, traced
from planimeter.landscape.admission import unwrapped
from planimeter.operators.batches import Inputs
from planimeter.symmetry.homogeneity import Flow, Use
from planimeter.symmetry.rescalings import Rescaling, Rescalings, Scaling
from planimeter.symmetry.units import ZERO, distinct

SHOWN = 3
"""Layers or reasons that are written out before the rest is counted."""


def find_rescalings(model: nn.Module, example: Inputs) -> Rescalings:
    r"""All positive rescalings of a network that leave its outputs in evaluation mode unchanged.

    The network is traced to a graph of operations on tensors. Every channel that a layer writes has
    a factor :math:`d > 0`; the layer multiplies by it, and the layers that read the channel divide.
    Positively homogeneous operations (ReLU, pooling, padding with zeros, reshaping, residual
    addition, concatenation, ...) hand the factors on and unite those that have to be the same;
    everything else, the network's input and its output fix them to 1, as do parameters that are
    frozen or used more than once. BatchNorm makes up for the factors of its input with its running
    statistics.

    Arguments:
        model: any module; neither it nor torch's random state is changed.
        example: inputs, a tensor or a tuple or dict of tensors; one or two rows are enough.

    Returns:
        One rescaling for each layer, or for each set of layers whose channels are added up; and
        what cannot be rescaled, with the reason. For a network whose way depends on its data, they
        are those of the way that the example took, and `rescaled` compares more rows.

    Source: Dinh et al. 2017, for a chain of layers.
    """
    model = unwrapped(model)
    try:
        flow = Flow(_graph(model, example))
    except InputError as error:
        return Rescalings((), (str(error),))
    _fix_unread(flow)
    written = {use.layer: torch.zeros(0, dtype=torch.long) for use in flow.uses if _writes(use)}
    for use in flow.uses:
        if _writes(use):
            written[use.layer] = torch.cat([written[use.layer], torch.tensor(distinct(use.units))])
    roots = flow.units.roots()
    fixed = flow.units.fixed_roots()
    free = {
        layer: [root for root in distinct(roots[units]) if root not in fixed]
        for layer, units in written.items()
    }
    buffers = dict(model.named_buffers())
    found = [
        _rescaling(layers, channels, flow, roots, buffers)
        for layers, channels in _sharing(free).items()
    ]
    refused = []
    for layer, units in written.items():
        if reasons := flow.units.reasons(units):
            part = "some channels of " if free[layer] else ""
            refused.append(f"{part}{layer!r}: {_some(reasons, '; ')}")
    return Rescalings(tuple(found), tuple(refused))


def _graph(model: nn.Module, example: Inputs) -> Trace:
    """For all inputs, or where there is none, for the example's way through the network."""
    try:
        return traced(model, example)
    except InputError as error:
        try:
            return recorded(model, example)
        except InputError as other:
            raise InputError(f"{error}; {other}") from other


def _writes(use: Use) -> bool:
    return use.power > 0 and not use.absorbs


def _fix_unread(flow: Flow) -> None:
    """A channel that nothing reads could be rescaled without anything that makes up for it."""
    find = flow.units.find
    read = {
        find(u) for use in flow.uses if not _writes(use) for u in distinct(use.units) if u != ZERO
    }
    for use in flow.uses:
        if _writes(use):
            for unit in torch.tensor(distinct(use.units)):
                if find(int(unit)) not in read and not flow.units.is_fixed(unit):
                    flow.units.fix(unit, "no layer reads its output")


def _sharing(free: dict[str, list[int]]) -> dict[tuple[str, ...], list[int]]:
    """Sets of layers that share a channel, in the order of their first, with all their channels."""
    sets: list[tuple[list[str], dict[int, None]]] = []
    for layer, roots in free.items():
        if not roots:
            continue
        touched = [s for s in sets if any(root in s[1] for root in roots)]
        first = touched[0] if touched else ([], {})
        if not touched:
            sets.append(first)
        for other in touched[1:]:
            first[0].extend(other[0])
            first[1].update(other[1])
            sets.remove(other)
        first[0].append(layer)
        first[1].update(dict.fromkeys(roots))
    return {tuple(layers): list(roots) for layers, roots in sets}


def _rescaling(
    layers: tuple[str, ...],
    channels: list[int],
    flow: Flow,
    roots: Tensor,
    buffers: dict[str, Tensor],
) -> Rescaling:
    channel_of = torch.full((len(roots),), -1)
    channel_of[torch.tensor(channels)] = torch.arange(len(channels))
    smallest = torch.zeros(len(channels), dtype=torch.float64)
    scalings: list[Scaling] = []
    readers: dict[str, None] = {}
    absorbed = False
    for use in flow.uses:
        channel = channel_of[roots[use.units]]
        if bool((channel < 0).all()):
            continue
        scalings.append(Scaling(use.tensor, use.power, channel, use.epsilon))
        absorbed |= use.absorbs
        if not _writes(use):
            readers[use.layer] = None
        if use.epsilon is not None:
            variance = buffers[use.tensor].detach().double().cpu().clamp(min=0)
            bound = (1 + variance / use.epsilon).rsqrt()  # exactly 1 at a variance of 0
            taken = channel >= 0
            smallest.scatter_reduce_(0, channel[taken], bound[taken], "amax")
    return Rescaling(
        f"{_some(layers, ' + ')} → {_some(list(readers), ' + ')}",
        "batch_norm" if absorbed else "linear",
        len(channels),
        layers,
        smallest,
        tuple(scalings),
    )


def _some(words: list[str] | tuple[str, ...], separator: str) -> str:
    more = len(words) - SHOWN
    if more <= 1:
        return separator.join(words)
    return f"{separator.join(words[:SHOWN])}{separator}{more} more"
