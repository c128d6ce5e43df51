r"""What each operation does to a positive factor of its input.

Positively homogeneous operations, :math:`f(d x) = d f(x)` for :math:`d > 0`, hand the units of
their input on; layers read the units of their input and write new ones; everything else fixes the
units that it meets.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn

from planimeter.errors import InputError
from planimeter.network import Trace, arguments, described
from planimeter.symmetry import contractions
from planimeter.symmetry.operations import (
    CONTRACTIONS,
    CONVOLUTIONS,
    ENTRYWISE,
    MOVING,
    NORMALISATIONS,
    PADDING,
    POOLING,
    REDUCING,
    RESHAPING,
    SUMS,
    TRANSPOSED,
)
from planimeter.symmetry.units import ZERO, Units, compressed

LARGEST_ADDED = 2**16
"""A parameter with more entries than that is not followed when it is added."""


@dataclass(frozen=True)
class Use:
    """How the entries of a parameter or buffer scale with the units.

    Arguments:
        layer: the module it belongs to.
        tensor: its name.
        power: 1 where it writes the units, -1 where it reads them.
        units: of a shape that broadcasts to its own.
        epsilon: that of BatchNorm for a running variance.
    """

    layer: str
    tensor: str
    power: int
    units: Int[Tensor, "*shape"]
    epsilon: float | None = None
    absorbs: bool = False


class Flow:
    """Follows the units through a graph; `uses` says what scales with them in the end.

    Raises:
        InputError: something is changed in place that cannot be followed.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self.units = trace, Units()
        self.uses: list[Use] = []
        self._values: dict[fx.Node, Any] = {}
        self._shapes = {n: node.meta["val"].shape for node, n in trace.tensors.items()}
        self._views: dict[fx.Node, tuple[str, Int[Tensor, "*shape"]]] = {}
        self._parts: dict[fx.Node, tuple[str, list[Tensor]]] = {}
        self._taken: defaultdict[str, list[Tensor | None]] = defaultdict(list)
        for node in trace.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._values[node] = self._call(node)
                self._follow_parameters(node)
            elif node.op == "output":
                for value in self._operands(node):
                    self.units.fix(value, "its output is the network's output")
            else:
                self._values[node] = self._constant(node, "it meets a constant of the model")
        self._fix_what_is_tied_or_frozen()

    # -- for what knows single operations -----------------------------------------------------

    def units_of(self, node: fx.Node) -> Int[Tensor, "*shape"]:
        """The units of a tensor's entries."""
        return self._values[node]

    def parameter(self, node: fx.Node | None) -> str | None:
        """The name of the parameter or buffer that a tensor is, or is a view of."""
        if node is None:
            return None
        return self._views[node][0] if node in self._views else self.trace.tensors.get(node)

    def use(self, node: fx.Node, power: int, units: Tensor, **more: Any) -> None:
        """A parameter or buffer scales with units, whose shape broadcasts to its own."""
        tensor = self.parameter(node)
        assert tensor is not None
        if node in self._views:
            index = self._views[node][1]
            whole = torch.full(self._shapes[tensor], ZERO)
            whole.view(-1)[index.reshape(-1)] = units.expand(index.shape).reshape(-1)
            units = whole
        layer = tensor.rpartition(".")[0] or tensor
        self.uses.append(Use(layer, tensor, power, units, **more))

    def added(self, node: fx.Node) -> Any:
        """The units of a summand; a parameter that is added has some of its own."""
        name, value = self.parameter(node), self._values[node]
        if name is None or name not in self.trace.trainable or value.numel() > LARGEST_ADDED:
            return value
        units = self.units.new(*value.shape)
        self.use(node, 1, units)
        return units

    # -- the graph ----------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Any:
        if node in self.trace.inputs:
            return self._constant(node, f"it is added to the network's input {node.name!r}")
        name = self.trace.tensors.get(node, node.name)
        return self._constant(node, f"it is added to the constant {name!r}")

    def _fix_what_is_tied_or_frozen(self) -> None:
        parameters = self.trace.trainable
        for use in self.uses:
            if self._overlaps(use.tensor) or use.tensor in self.trace.shared:
                self.units.fix(use.units, f"{use.tensor!r} is used more than once")
            if not use.absorbs and use.tensor not in parameters:
                self.units.fix(use.units, f"{use.tensor!r} is frozen")

    # -- one operation ------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            values = self._values[source]  # type: ignore[index]
            return values[index] if isinstance(values, list) else values  # type: ignore[index]
        if not isinstance(node.target, torch._ops.OpOverload):
            return self._opaque(node)
        name = node.target._schema.name.removeprefix("aten::")
        if name.startswith("_assert"):
            return None
        given = arguments(node)
        name = name if name.startswith("_") else name.rstrip("_")
        handed_on = self._handed_on(node, name, given)
        if handed_on is not None:
            return handed_on
        self._refuse_lost_zeros(node)
        result = None
        if self._first(given) is None and name != "einsum":
            pass
        elif name in SUMS:
            result = self._sum(node, given)
        elif name in ("mul", "div"):
            result = self._product(node, name, given)
        elif name in ("square", "pow"):
            result = self._power(node, given)
        elif name == "glu":
            result = self._gated(node, given)
        elif name in CONTRACTIONS:
            result = contractions.contracted(self, node, name, given)
        elif name == "bilinear":
            result = contractions.bilinear(self, node, given)
        elif name == "scaled_dot_product_attention":
            result = contractions.attention(self, node, given)
        elif name in NORMALISATIONS:
            result = self._normalised(node, name, given)
        elif name == "embedding":
            result = self._embedded(node, given)
        elif name in CONVOLUTIONS and not given.get("transposed"):
            result = self._convolution(node, given, transposed=False)
        elif name in TRANSPOSED:
            result = self._convolution(node, given, transposed=True)
        elif name == "batch_norm":
            result = self._batch_norm(node, given)
        return self._opaque(node) if result is None else result

    def _handed_on(self, node: fx.Node, name: str, given: dict[str, Any]) -> Any:
        """The units of a homogeneous operation's result; None if it is none."""
        if name in MOVING:
            return self._moved(node, name, given)
        first = self._first(given)
        if first is None:
            return None
        if name in ENTRYWISE:
            return first
        if name in ("dropout", "feature_dropout", "alpha_dropout"):
            return first if given.get("train") is False else None
        if name in ("to", "_to_copy", "type_as"):
            return first if node.meta["val"].is_floating_point() else None
        if name in ("clamp", "clamp_min"):
            return first if given["min"] == 0 and given.get("max") is None else None
        if name == "threshold":
            return first if given["threshold"] == 0 and given["value"] == 0 else None
        if name.startswith(POOLING):
            dimensions = int(re.findall(r"(\d)d", name)[0])
            return self._shaped(node, self.units.together(first, range(-dimensions, 0)))
        if name in REDUCING:
            return self._reduced(node, first, given)
        return None

    def _moved(self, node: fx.Node, name: str, given: dict[str, Any]) -> Any:
        if name in PADDING and given.get("mode", "constant") == "constant":
            units = self._values[given["self"]].double()
            padded = nn.functional.pad(units, given["pad"], "constant", float(ZERO))
            return compressed(padded.long()) if not given.get("value") else None
        operands = {n: self._values[n] for n in node.all_input_nodes}
        if not all(isinstance(units, Tensor) for units in operands.values()):
            return None
        # Doubles, since some paddings know no integers; they hold any unit exactly.
        moved = _on(node, {n: units.double() for n, units in operands.items()})
        if moved is None:
            return None
        if isinstance(moved, Tensor):
            return compressed(moved.long())
        return [compressed(part.long()) for part in moved]

    def _reduced(self, node: fx.Node, units: Tensor, given: dict[str, Any]) -> Any:
        if isinstance(given.get("other"), fx.Node):  # max(a, b)
            return self._sum(node, given)
        dims = given.get("dim")
        dims = list(range(units.ndim)) if dims is None or dims == [] else dims
        dims = [dims] if isinstance(dims, int) else list(dims)
        result = self.units.together(units, dims)
        if not given.get("keepdim", False):
            result = result.squeeze([d % units.ndim for d in dims]) if units.ndim else result
        return self._shaped(node, result)

    def _sum(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        left, right = (given[key] for key in ("self", "other"))
        if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
            return None
        both = [self.added(left), self.added(right)]
        if not all(isinstance(units, Tensor) for units in both):
            return None
        return self.units.unite(*both)

    def _product(self, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
        left, right = given["self"], given["other"]
        one, other = (self._values.get(n) if isinstance(n, fx.Node) else n for n in (left, right))
        if given.get("rounding_mode") is not None or not isinstance(one, Tensor):
            return None
        shape = node.meta["val"].shape
        if isinstance(right, int | float):
            return one.expand(shape)
        if not isinstance(other, Tensor):
            return None
        # In place, views of the first factor would not hear of its new units.
        if node.target._schema.is_mutable:  # type: ignore[union-attr]
            return one.expand(shape) if self.units.is_fixed(other) else None
        if name == "div":
            return one.expand(shape) if self.units.is_fixed(other) else None
        reason = f"{described(node)} multiplies it"
        return self.units.product(one, other, reason, contractions.LARGEST)

    def _power(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        units, exponent = self._first(given), given.get("exponent", 2)
        if units is None or exponent not in range(1, 9):
            return None
        if node.target._schema.is_mutable:  # type: ignore[union-attr]
            return None
        return self.units.power(units, int(exponent), f"{described(node)} takes its power")

    def _gated(self, node: fx.Node, given: dict[str, Any]) -> Tensor:
        """The first half of the channels times the logistic function of the second."""
        passed, gate = self.units_of(given["self"]).chunk(2, given["dim"])
        self.units.fix(gate, f"{described(node)} takes the logistic function of it")
        return passed

    def _normalised(self, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
        """What a normalisation is given is fixed; its scale and shift write units."""
        weight, bias = given["weight"], given.get("bias")
        if self.parameter(weight) is None or (bias and self.parameter(bias) is None):
            return None
        reason = f"{described(node)} is not known to be positively homogeneous"
        self.units.fix(self.units_of(given["input"]), reason)
        written = self.units.new(*self.units_of(weight).shape)
        self.use(weight, 1, written)
        if bias is not None:
            self.use(bias, 1, written)
        if name == "group_norm":
            return self._channels(node, written, 1)
        return written.expand(node.meta["val"].shape)

    def _embedded(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        if self.parameter(given["weight"]) is None:
            return None
        written = self.units.new(self.units_of(given["weight"]).shape[1])
        self.use(given["weight"], 1, written[None, :])
        return written.expand(node.meta["val"].shape)

    def _convolution(
        self, node: fx.Node, given: dict[str, Any], *, transposed: bool
    ) -> Tensor | None:
        inputs, weight = self._values[given["input"]], given["weight"]
        shape = self._values[weight].shape
        groups, window = int(given.get("groups", 1)), (1,) * (len(shape) - 2)
        if self.parameter(weight) is None:
            return None
        channel = inputs.ndim - len(window) - 1
        others = [dim for dim in range(inputs.ndim) if dim != channel]
        read = self.units.together(inputs, others).reshape(groups, -1)
        if transposed:  # weight: all inputs x a group's outputs
            written = self.units.new(groups, shape[1])
            rows = written[:, None].expand(groups, shape[0] // groups, shape[1])
            self.use(weight, 1, rows.reshape(shape[0], shape[1], *window))
            self.use(weight, -1, read.reshape(shape[0], 1, *window))
        else:  # weight: all outputs x a group's inputs
            written = self.units.new(shape[0])
            columns = read[:, None].expand(groups, shape[0] // groups, shape[1])
            self.use(weight, 1, written.reshape(shape[0], 1, *window))
            self.use(weight, -1, columns.reshape(shape[0], shape[1], *window))
        return self._with_bias(node, given, written.reshape(-1), channel)

    def _with_bias(
        self, node: fx.Node, given: dict[str, Any], written: Tensor, channel: int
    ) -> Tensor:
        bias = given.get("bias")
        if bias is not None:
            if self.parameter(bias) is None:
                self.units.fix(written, f"{described(node)} has a bias that is computed")
            else:
                self.use(bias, 1, written)
        return self._channels(node, written, channel)

    def _batch_norm(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        mean, variance = (given[k] for k in ("running_mean", "running_var"))
        weight, bias = (given[k] for k in ("weight", "bias"))
        if given["training"] or not all(self.parameter(n) is not None for n in (mean, variance)):
            return None
        inputs = self._values[given["input"]]
        read = self.units.together(inputs, [d for d in range(inputs.ndim) if d != 1]).reshape(-1)
        self.use(mean, 1, read, absorbs=True)
        self.use(variance, 1, read, absorbs=True, epsilon=float(given["eps"]))
        written = self.units.new(len(read))
        if self.parameter(weight) is None or self.parameter(bias) is None:
            self.units.fix(written, f"{described(node)} has no weight and bias to rescale")
        else:
            self.use(weight, 1, written)
            self.use(bias, 1, written)
        return self._channels(node, written, 1)

    def _opaque(self, node: fx.Node) -> Any:
        reason = f"{described(node)} is not known to be positively homogeneous"
        for units in self._operands(node):
            self.units.fix(units, reason)
        return self._constant(node, reason)

    def _first(self, given: dict[str, Any]) -> Tensor | None:
        """The units of the first operand, where that is a tensor."""
        operand = next(iter(given.values()), None)
        units = self._values.get(operand) if isinstance(operand, fx.Node) else None
        return units if isinstance(units, Tensor) else None

    # -- helpers ------------------------------------------------------------------------------

    def _constant(self, node: fx.Node, reason: str) -> Any:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return self.units.fixed(reason, value.shape)
        if isinstance(value, list | tuple):
            return [
                self.units.fixed(reason, v.shape) if isinstance(v, Tensor) else None for v in value
            ]
        return None

    def _channels(self, node: fx.Node, units: Tensor, channel: int) -> Tensor:
        shape = node.meta["val"].shape
        sizes = [1] * len(shape)
        sizes[channel] = -1
        return units.reshape(sizes).expand(shape)

    def _shaped(self, node: fx.Node, units: Tensor) -> Any:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return units.expand(value.shape)
        return [units.expand(value[0].shape), *[None] * (len(value) - 1)]

    def _operands(self, node: fx.Node) -> list[Tensor]:
        values = [self._values.get(n) for n in node.all_input_nodes]
        flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
        return [v for v in flat if isinstance(v, Tensor)]

    def _follow_parameters(self, node: fx.Node) -> None:
        """What a view shows of a parameter; or which entries of parameters are used up here."""
        taken: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), taken.append)
        if len(taken) == 1 and self._seen(node, taken[0]):
            return
        for operand in taken:
            if operand in self.trace.tensors:
                self._taken[self.trace.tensors[operand]].append(None)
            elif operand in self._views:
                name, index = self._views[operand]
                self._taken[name].append(index)

    def _seen(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether an operation only shows a part of a parameter, or turns it."""
        if node.target is operator.getitem:
            parts = self._parts.get(source)
            if parts is not None:
                self._views[node] = parts[0], parts[1][node.args[1]]  # type: ignore[index]
            return parts is not None
        schema = getattr(node.target, "_schema", None)
        name = schema.name.removeprefix("aten::") if schema else ""
        if name not in MOVING - PADDING or (schema and schema.is_mutable):
            return False
        if source in self.trace.tensors:
            tensor = self.trace.tensors[source]
            shape = self._values[source].shape
            index = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
        elif source in self._views:
            tensor, index = self._views[source][0], self._views[source][1].double()
        else:
            return False
        moved = _on(node, {source: index})
        if isinstance(moved, Tensor):
            self._views[node] = tensor, moved.long()
        elif moved is not None:
            self._parts[node] = tensor, [part.long() for part in moved]
        return moved is not None

    def _overlaps(self, tensor: str) -> bool:
        """Whether an entry of a parameter is used more than once."""
        taken = self._taken[tensor]
        indices = [index.reshape(-1) for index in taken if index is not None]
        if len(taken) != len(indices):
            return len(taken) > 1
        entries = torch.cat([torch.zeros(0, dtype=torch.long), *indices])
        return len(torch.unique(entries)) < len(entries)

    def _refuse_lost_zeros(self, node: fx.Node) -> None:
        """Zeros that are overwritten in place would go on fitting with any factor elsewhere."""
        schema = node.target._schema  # type: ignore[union-attr]
        if schema.is_mutable and any(bool((u == ZERO).any()) for u in self._operands(node)):
            raise InputError(f"{described(node)} writes into padded zeros in place")


def _on(node: fx.Node, operands: dict[fx.Node, Tensor]) -> Any:
    """What an operation that moves entries makes of other tensors; None where it does not run."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), operands.__getitem__)
    target: Any = node.target
    if target._schema.name.removeprefix("aten::") in RESHAPING:
        target = torch.ops.aten.reshape.default
    try:
        return target(*args, **kwargs)
    except (RuntimeError, TypeError):  # a variant that knows no doubles on the CPU
        return None
