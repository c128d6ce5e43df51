"""The rescalings of a user's network, found from the operations that it runs."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import torch
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.landscape.admission import unwrapped
from planimeter.network import Trace, recorded, traced
from planimeter.network.tracing import named_tensors
from planimeter.products.batches import Inputs
from planimeter.symmetry.exponents import Exponents
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
    statistics. Two activations that are multiplied make up for each other, :math:`q_c k_c =
    (d\,q_c)(k_c / d)`: query and key, a gate and what it lets pass.

    What is found is true; more may exist. Neither rotations nor shifts are looked for, and what an
    operation that is not known to be homogeneous would let through is not found.

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
    powers = _Powers(flow)
    written: dict[str, list[int]] = {}
    for use in flow.uses:
        if _writes(use):
            roots = powers.roots[torch.tensor(distinct(use.units))].tolist()
            written.setdefault(use.layer, []).extend(roots)
    free: dict[str, dict[int, None]] = {}
    for layer, roots in written.items():
        for root in roots:
            for unit, power in powers.of(root).items():
                if power > 0:
                    free.setdefault(layer, {})[unit] = None
    buffers = dict(model.named_buffers())
    shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}
    found = [
        _rescaling(layers, channels, powers, shapes, buffers)
        for layers, channels in _sharing(free, powers)
    ]
    refused = []
    for layer, roots in written.items():
        if reasons := flow.units.reasons(torch.tensor(roots)):
            part = "some channels of " if any(powers.of(root) for root in roots) else ""
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


class _Powers:
    """Every unit as a product of powers of free ones that something makes up for."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self._solution = flow, flow.units.solve()
        self.roots = flow.units.roots()
        self._absorb_plainly()
        self._fix_unread()

    def of(self, root: int) -> Exponents:
        """Free units and their powers; none for 1."""
        if root == ZERO or root in self._fixed:
            return {}
        found = self._solution.get(root)
        if found is None:
            return {root: Fraction(1)}
        return {unit: power for unit, power in found.items() if unit not in self._fixed}

    def following(self, channels: list[int]) -> list[int]:
        """The units that are no channels and follow from some."""
        wanted = set(channels)
        return [root for root, found in self._solution.items() if wanted & found.keys()]

    @property
    def _fixed(self) -> set[int]:
        return self.flow.units.fixed_roots()

    def _roots_of(self, use: Use) -> list[int]:
        found: list[int] = self.roots[torch.tensor(distinct(use.units))].tolist()
        return found

    def _absorb_plainly(self) -> None:
        """Running statistics make up for one unit, not for a product of several."""
        for use in self.flow.uses:
            for root in self._roots_of(use) if use.absorbs else ():
                own = self.of(root)
                if any(power != 1 for power in own.values()) or len(own) > 1:
                    for unit in own:
                        self._fix(unit, f"a product is normalised by {use.layer!r}")

    def _fix_unread(self) -> None:
        """A channel that nothing reads could be rescaled without anything that makes up for it."""
        multiplied: set[int] = set()
        divided: set[int] = set()
        for use in self.flow.uses:
            for root in self._roots_of(use):
                for unit, power in self.of(root).items():
                    if use.absorbs or power * use.power < 0:
                        divided.add(unit)
                    if not use.absorbs and power * use.power > 0 and use.power > 0:
                        multiplied.add(unit)
        for unit in (multiplied | divided) - (multiplied & divided):
            self._fix(unit, "no layer reads its output")

    def _fix(self, unit: int, reason: str) -> None:
        self.flow.units.fix(torch.tensor([unit]), reason)


def _sharing(
    free: dict[str, dict[int, None]], powers: _Powers
) -> list[tuple[tuple[str, ...], list[int]]]:
    """Sets of layers that share a channel, in the order of their first, with all their channels.

    What one part of a layer makes up for in another part of it (query and key that one matrix
    computes) is a set of its own.
    """
    within = _within_one_layer(powers)
    sets: list[tuple[list[str], dict[int, None]]] = []
    for layer, units in free.items():
        own = [unit for unit in units if unit in within.get(layer, ())]
        for part in ([unit for unit in units if unit not in own], own):
            if not part:
                continue
            touched = [s for s in sets if any(unit in s[1] for unit in part)]
            first = touched[0] if touched else ([], {})
            if not touched:
                sets.append(first)
            for other in touched[1:]:
                first[0].extend(other[0])
                first[1].update(other[1])
                sets.remove(other)
            first[0].append(layer)
            first[1].update(dict.fromkeys(part))
    return [(tuple(dict.fromkeys(layers)), list(units)) for layers, units in sets]


def _within_one_layer(powers: _Powers) -> dict[str, set[int]]:
    """Layer to the units that multiply one part of what it writes, and divide another."""
    signs: dict[str, tuple[set[int], set[int]]] = {}
    for use in powers.flow.uses:
        if _writes(use):
            for root in powers.roots[torch.tensor(distinct(use.units))].tolist():
                for unit, power in powers.of(root).items():
                    signs.setdefault(use.layer, (set(), set()))[power < 0].add(unit)
    return {layer: up & down for layer, (up, down) in signs.items()}


def _rescaling(
    layers: tuple[str, ...],
    channels: list[int],
    powers: _Powers,
    shapes: dict[str, torch.Size],
    buffers: dict[str, Tensor],
) -> Rescaling:
    places = {unit: place for place, unit in enumerate(channels)}
    maps = _channel_maps(places, powers)
    smallest = torch.zeros(len(channels), dtype=torch.float64)
    total: dict[str, Tensor] = {}
    scalings: list[Scaling] = []
    readers: dict[str, None] = {}
    absorbed = False
    for use in powers.flow.uses:
        for (power, _), channel_of in maps.items():
            channel = channel_of[powers.roots[use.units]]
            if bool((channel < 0).all()):
                continue
            by = use.power * power
            scalings.append(Scaling(use.tensor, _plain(by), channel, use.epsilon))
            absorbed |= use.absorbs
            if use.absorbs or by < 0:
                readers[use.layer] = None
            here = torch.zeros(shapes[use.tensor]) if use.tensor not in total else total[use.tensor]
            total[use.tensor] = here + float(by) * (channel >= 0)
            if use.epsilon is not None:
                variance = buffers[use.tensor].detach().double().cpu().clamp(min=0)
                bound = (1 + variance / use.epsilon).rsqrt()  # exactly 1 at a variance of 0
                taken = channel >= 0
                smallest.scatter_reduce_(0, channel[taken], bound[taken], "amax")
    return Rescaling(
        _name(layers, list(readers)),
        "batch_norm" if absorbed else "linear",
        len(channels),
        layers,
        smallest,
        tuple(scalings),
        all(bool((power == power.reshape(-1)[0]).all()) for power in total.values()),
    )


def _channel_maps(places: dict[int, int], powers: _Powers) -> dict[tuple[Fraction, int], Tensor]:
    """Power to the channel of every unit that has it; a unit of several channels is in several."""
    plain = torch.full((len(powers.roots),), -1)
    plain[torch.tensor(list(places))] = torch.arange(len(places))
    maps: dict[tuple[Fraction, int], Tensor] = {(Fraction(1), 0): plain}
    for root in powers.following(list(places)):
        seen: Counter[Fraction] = Counter()
        for unit, power in powers.of(root).items():
            if unit in places:
                key = power, seen[power]
                seen[power] += 1
                maps.setdefault(key, torch.full_like(plain, -1))[root] = places[unit]
    return maps


def _plain(power: Fraction) -> float:
    return int(power) if power.denominator == 1 else float(power)


def _name(layers: tuple[str, ...], readers: list[str]) -> str:
    if list(layers) == readers:
        return f"a part of {_some(layers, ' + ')} → another part of it"
    return f"{_some(layers, ' + ')} → {_some(readers, ' + ')}"


def _some(words: list[str] | tuple[str, ...], separator: str) -> str:
    more = len(words) - SHOWN
    if more <= 1:
        return separator.join(words)
    return f"{separator.join(words[:SHOWN])}{separator}{more} more"
