r"""What each operation does to a positive factor of its input.

Positively homogeneous operations, :math:`f(d x) = d f(x)` for :math:`d > 0`, hand the units of
their input on; layers read the units of their input and write new ones; everything else fixes the
units that it meets.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, fx, nn

from planimeter.errors import InputError
from planimeter.landscape import Trace, arguments, described
from planimeter.symmetry.operations import (
    CONVOLUTIONS,
    ENTRYWISE,
    MOVING,
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
        self._times_used: Counter[str] = Counter()
        for node in trace.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "call_function":
                self._times_used.update(self._tensor_names(node))
                self._values[node] = self._call(node)
            elif node.op == "output":
                for value in self._operands(node):
                    self.units.fix(value, "its output is the network's output")
            else:
                self._values[node] = self._constant(node, "it meets a constant of the model")
        self._fix_what_is_tied_or_frozen()

    def _placeholder(self, node: fx.Node) -> Any:
        if node in self.trace.inputs:
            return self._constant(node, f"it is added to the network's input {node.name!r}")
        name = self.trace.tensors.get(node, node.name)
        return self._constant(node, f"it is added to the constant {name!r}")

    def _fix_what_is_tied_or_frozen(self) -> None:
        parameters = self.trace.trainable
        for use in self.uses:
            if self._times_used[use.tensor] > 1 or use.tensor in self.trace.shared:
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
        if self._first(given) is None:
            pass
        elif name in SUMS:
            result = self._sum(node, given)
        elif name in ("mul", "div"):
            result = self._product(node, name, given)
        elif name in ("linear", "matmul", "mm"):
            result = self._linear(node, name, given)
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
        as_numbers = {n: units.double() for n, units in operands.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), as_numbers.__getitem__)
        target: Any = node.target
        if name in RESHAPING:
            target = torch.ops.aten.reshape.default
        try:
            moved = target(*args, **kwargs)
        except (RuntimeError, TypeError):  # a variant that knows no doubles on the CPU
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
        both = [self._added(left), self._added(right)]
        if not all(isinstance(units, Tensor) for units in both):
            return None
        return self.units.unite(*both)

    def _added(self, node: fx.Node) -> Any:
        """The units of a summand; a parameter that is added has some of its own."""
        name, value = self.trace.tensors.get(node), self._values[node]
        if name is None or name not in self.trace.trainable or value.numel() > LARGEST_ADDED:
            return value
        units = self.units.new(*value.shape)
        self._use(name, 1, units)
        return units

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
        if self.units.is_fixed(other):
            return one.expand(shape)
        # In place, views of the first factor would not hear of its new units.
        in_place = node.target._schema.is_mutable  # type: ignore[union-attr]
        if name == "mul" and self.units.is_fixed(one) and not in_place:
            return other.expand(shape)
        return None

    def _linear(self, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
        x, weight = list(given.values())[:2]
        inputs, parameter = self._values[x], self.trace.tensors.get(weight)
        if parameter is None or self._values[weight].ndim != 2:
            return None
        read = self.units.together(inputs, range(inputs.ndim - 1)).reshape(-1)
        flipped = name != "linear"  # x @ W rather than x @ W.T
        written = self.units.new(self._values[weight].shape[1 if flipped else 0])
        self._use(parameter, 1, written[None, :] if flipped else written[:, None])
        self._use(parameter, -1, read[:, None] if flipped else read[None, :])
        return self._with_bias(node, given, written, -1)

    def _convolution(
        self, node: fx.Node, given: dict[str, Any], *, transposed: bool
    ) -> Tensor | None:
        inputs, weight = self._values[given["input"]], given["weight"]
        parameter, shape = self.trace.tensors.get(weight), self._values[weight].shape
        groups, window = int(given.get("groups", 1)), (1,) * (len(shape) - 2)
        if parameter is None:
            return None
        channel = inputs.ndim - len(window) - 1
        others = [dim for dim in range(inputs.ndim) if dim != channel]
        read = self.units.together(inputs, others).reshape(groups, -1)
        if transposed:  # weight: all inputs x a group's outputs
            written = self.units.new(groups, shape[1])
            rows = written[:, None].expand(groups, shape[0] // groups, shape[1])
            self._use(parameter, 1, rows.reshape(shape[0], shape[1], *window))
            self._use(parameter, -1, read.reshape(shape[0], 1, *window))
        else:  # weight: all outputs x a group's inputs
            written = self.units.new(shape[0])
            columns = read[:, None].expand(groups, shape[0] // groups, shape[1])
            self._use(parameter, 1, written.reshape(shape[0], 1, *window))
            self._use(parameter, -1, columns.reshape(shape[0], shape[1], *window))
        return self._with_bias(node, given, written.reshape(-1), channel)

    def _with_bias(
        self, node: fx.Node, given: dict[str, Any], written: Tensor, channel: int
    ) -> Tensor:
        bias = given.get("bias")
        if bias is not None:
            name = self.trace.tensors.get(bias)
            if name is None:
                self.units.fix(written, f"{described(node)} has a bias that is computed")
            else:
                self._use(name, 1, written)
        return self._channels(node, written, channel)

    def _batch_norm(self, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
        tensors = self.trace.tensors
        mean, variance = (tensors.get(given[k]) for k in ("running_mean", "running_var"))
        weight, bias = (tensors.get(given[k]) for k in ("weight", "bias"))
        if given["training"] or mean is None or variance is None:
            return None
        inputs = self._values[given["input"]]
        read = self.units.together(inputs, [d for d in range(inputs.ndim) if d != 1]).reshape(-1)
        self._use(mean, 1, read, absorbs=True)
        self._use(variance, 1, read, absorbs=True, epsilon=float(given["eps"]))
        written = self.units.new(len(read))
        if weight is None or bias is None:
            self.units.fix(written, f"{described(node)} has no weight and bias to rescale")
        else:
            self._use(weight, 1, written)
            self._use(bias, 1, written)
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

    def _use(self, tensor: str, power: int, units: Tensor, **more: Any) -> None:
        layer = tensor.rpartition(".")[0] or tensor
        self.uses.append(Use(layer, tensor, power, units, **more))

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

    def _tensor_names(self, node: fx.Node) -> list[str]:
        """Parameters and buffers among the operands, as often as they occur."""
        found: list[str] = []

        def look(operand: fx.Node) -> None:
            if operand in self.trace.tensors:
                found.append(self.trace.tensors[operand])

        fx.node.map_arg((node.args, node.kwargs), look)
        return found

    def _refuse_lost_zeros(self, node: fx.Node) -> None:
        """Zeros that are overwritten in place would go on fitting with any factor elsewhere."""
        schema = node.target._schema  # type: ignore[union-attr]
        if schema.is_mutable and any(bool((u == ZERO).any()) for u in self._operands(node)):
            raise InputError(f"{described(node)} writes into padded zeros in place")
