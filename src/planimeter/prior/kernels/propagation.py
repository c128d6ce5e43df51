r"""Covariances of a program's steps on a tile of pairs, each computed when it is needed.

A program is a list of steps in the order of a network's operations. Needed are single offsets of
single steps: what a global pooling layer sums up comes one offset after the other and is freed
again, so a network without pooling in between needs memory for a few images a pair and not for the
square of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.prior.kernels.activations import Dual
from planimeter.prior.kernels.covariance_steps import (
    Activation,
    Input,
    LayerNorm,
    Node,
    Sides,
    Step,
    here,
    there,
)

Program = tuple[Step, ...]
Data = list[Float[Tensor, "_h _w _d _n"]]
"""A program's inputs, each of sizes of its own, rows last."""
Products = Callable[[Float[Tensor, "h w d r"], Float[Tensor, "h w d c"]], Tensor]
"""Means of products of features: of all pairs, or of each row with the column of its number."""

# Arrays of a tile's size that an activation makes on top of its input.
_WORKSPACE = 3
# Channels of an image up to which outer products are faster than many small matrix products.
_FEW = 8


@dataclass(frozen=True)
class Instruction:
    """Fold `source` into `node`, or make the input `node` where there is no source.

    `last` says that the source is not needed again, `final` that the node is done then.
    """

    node: Node
    source: Node | None
    last: bool
    final: bool


@dataclass(frozen=True)
class Plan:
    """In which order covariances are computed.

    Arguments:
        instructions: one after the other.
        targets: what they end in.
        peak: numbers for each pair that are in memory at the same time.
        largest, mean: positions of the largest covariance and of the average one.
    """

    instructions: tuple[Instruction, ...]
    targets: tuple[Node, ...]
    peak: int
    largest: int
    mean: float


def planned(program: Program, targets: list[Node]) -> Plan:
    """The order in which targets are reached depth first, everything freed after its last use."""
    found: list[tuple[Node, Node | None]] = []
    done: set[Node] = set()
    for target in targets:
        if target in done:
            continue
        path = [(target, _needs(program, target))]
        while path:
            node, pending = path[-1]
            needed = next(pending, None)
            if needed is None:
                path.pop()
                done.add(node)
                if not program[node[0]].sources or not _positions(program, node):
                    found.append((node, None))
                if path:
                    found.append((path[-1][0], node))
            elif needed in done:
                found.append((node, needed))
            else:
                path.append((needed, _needs(program, needed)))
    read: set[Node] = set()
    written: set[Node] = set()
    instructions: list[Instruction] = []
    for node, source in reversed(found):
        last = source is not None and source not in read
        instructions.append(Instruction(node, source, last, node not in written))
        written.add(node)
        if source is not None:
            read.add(source)
    instructions.reverse()
    sizes = {node: _positions(program, node) for node in done}
    return Plan(
        tuple(instructions),
        tuple(targets),
        _peak(instructions, sizes),
        max(sizes.values()),
        sum(sizes.values()) / len(sizes),
    )


def _needs(program: Program, node: Node) -> Iterator[Node]:
    """What a covariance is made from: nothing where no two positions are that far apart."""
    return program[node[0]].needs(node[1]) if _positions(program, node) else iter(())


def _positions(program: Program, node: Node) -> int:
    height, width = _size(program, node)
    return height * width


def _size(program: Program, node: Node) -> tuple[int, int]:
    (height, width), (dy, dx) = program[node[0]].size, node[1]
    return max(0, height - abs(dy)), max(0, width - abs(dx))


def _peak(instructions: list[Instruction], sizes: dict[Node, int]) -> int:
    live: dict[Node, int] = {}
    peak = 0
    for step in instructions:
        live[step.node] = sizes[step.node]
        work = max(sizes[step.node], sizes[step.source] if step.source else 0)
        peak = max(peak, sum(live.values()) + _WORKSPACE * work)
        if step.last and step.source is not None:
            live.pop(step.source, None)
    return peak


def covariance(
    program: Program, plan: Plan, left: Data, right: Data, moments: Sides, products: Products
) -> Float[Tensor, "h w r c"]:
    """The covariance of a plan's one target between `left` and `right`: see `Products`."""
    found: dict[Node, Tensor] = {}
    _run(program, plan, partial(_made, program, left, right, products), moments, found.update)
    return found[plan.targets[0]]


class Fields:
    """Variances and means of the rows of the data, by step: what `Moments` are cut from."""

    def __init__(self, program: Program, data: Data) -> None:
        self.program, self.data = program, data
        self.variances: dict[int, Float[Tensor, "h w n"]] = {}
        self.means: dict[int, Float[Tensor, "h w n"] | None] = {}
        self.ready: dict[tuple[int, str], Float[Tensor, "h w n"]] = {}

    def variance(self, step: int) -> Float[Tensor, "h w n 1"]:
        """As in `Moments`, of all rows."""
        return self.variances[step][..., None]

    def prepared(self, step: int, dual: Dual) -> Float[Tensor, "h w n 1"]:
        """As in `Moments`, of all rows."""
        if (step, dual.name) not in self.ready:
            self.ready[step, dual.name] = dual.prepared(self.variances[step])
        return self.ready[step, dual.name][..., None]

    def mean(self, step: int) -> Float[Tensor, "h w n 1"] | None:
        """As in `Moments`, of all rows."""
        if step not in self.means:
            layer = self.program[step]
            if isinstance(layer, Input):
                found: Tensor | None = self.data[layer.number].mean(2)[..., None]
            else:
                found = layer.mean([self.mean(source) for source in layer.sources], self)
            self.means[step] = None if found is None else found[..., 0]
        mean = self.means[step]
        return None if mean is None else mean[..., None]


def own_moments(program: Program, plan: Plan, data: Data) -> Fields:
    """Variances of the plan's targets, all at offset 0, and the means that layer norm needs."""
    fields = Fields(program, data)

    def reached(values: dict[Node, Tensor]) -> None:
        for (step, _), value in values.items():
            fields.variances[step] = value[..., 0].clone()

    made = partial(_made, program, data, data, each_with_its_own)
    _run(program, plan, made, (fields, fields), reached)
    for step in program:
        if isinstance(step, LayerNorm):
            fields.mean(step.sources[0])
    return fields


def moments_needed(program: Program) -> list[Node]:
    """Variances that activations and layer norms divide by, and that of the output."""
    sources = {step.sources[0] for step in program if isinstance(step, Activation | LayerNorm)} | {
        len(program) - 1
    }
    return [(step, (0, 0)) for step in sorted(sources)]


def _run(
    program: Program,
    plan: Plan,
    made: Callable[[Node], Tensor],
    moments: Sides,
    reached: Callable[[dict[Node, Tensor]], None],
) -> None:
    values: dict[Node, Tensor] = {}
    targets = frozenset(plan.targets)
    for step in plan.instructions:
        if step.source is None:
            values[step.node] = made(step.node)
        else:
            layer = program[step.node[0]]
            source = values.pop(step.source) if step.last else values[step.source]
            if layer.overwrites and not step.last:
                source = source.clone()
            values[step.node] = layer.fold(
                values.get(step.node), source, step.source, step.node[1], moments
            )
        if step.final and step.node in targets:
            reached({step.node: values[step.node]})


def all_pairs(
    left: Float[Tensor, "h w d r"], right: Float[Tensor, "h w d c"]
) -> Float[Tensor, "h w r c"]:
    """Every row with every column."""
    features = left.shape[2]
    if features > _FEW:
        return torch.matmul(left.mT, right).div_(features)
    total = left[:, :, 0, :, None] * right[:, :, 0, None, :]
    for feature in range(1, features):
        total.addcmul_(left[:, :, feature, :, None], right[:, :, feature, None, :])
    return total.div_(features)


def each_with_its_own(
    left: Float[Tensor, "h w d p"], right: Float[Tensor, "h w d p"]
) -> Float[Tensor, "h w p 1"]:
    """Every row with one column."""
    return (left * right).mean(2)[..., None]


def _made(
    program: Program, left: Data, right: Data, products: Products, node: Node
) -> Float[Tensor, "h w r c"]:
    layer, size = program[node[0]], _size(program, node)
    if isinstance(layer, Input) and 0 not in size:
        return products(here(left[layer.number], node[1]), there(right[layer.number], node[1]))
    # No two positions are that far apart.
    pairs = products(left[0][:1, :1], right[0][:1, :1]).shape[2:]
    return left[0].new_zeros(*size, *pairs)
