r"""A user's network as a program of covariance steps, read from the graph of its operations.

Everything before the first weights is computed on the data itself. After that an operation is a
step of `covariance_steps`, moves nothing that matters (dropout in evaluation mode, contiguous), or
is refused by its name. Two conditions make the steps exact in the limit:

* An activation needs Gaussian features: a sum of outputs of linear layers.
* The terms of a sum must be uncorrelated: one of each pair is the output of a linear layer, whose
  weights have mean zero, and the other does not depend on those weights.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from planimeter.errors import InputError
from planimeter.network import Trace, arguments, described, traced
from planimeter.prior.kernels.activations import Dual, erf, gelu, relu
from planimeter.prior.kernels.covariance_steps import (
    Activation,
    Input,
    LayerNorm,
    Linear,
    Scale,
    Step,
    Sum,
)
from planimeter.prior.kernels.data_steps import DataSteps
from planimeter.prior.kernels.grid_steps import AveragePool, Convolution
from planimeter.prior.kernels.hermite import smooth
from planimeter.prior.kernels.propagation import Program

UNCHANGED = frozenset(
    {"contiguous", "clone", "detach", "alias", "to", "_to_copy", "positive", "lift_fresh_copy"}
) | frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
RESHAPING = frozenset(
    {"view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze", "unflatten", "ravel"}
)

# Axes in another order, which the features keep note of.
MOVING = frozenset(
    {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint"}
)

Variances = Callable[[str, str | None, int], tuple[float, float]]
"""sigma_w^2 and sigma_b^2 by the names of a weight and a bias and the fan-in."""


@dataclass(frozen=True)
class Term:
    """One term of a sum of features.

    Arguments:
        weight: of the linear layer whose output it is; None for anything else.
        depends: all weights that it depends on.
    """

    weight: str | None
    depends: frozenset[str]

    def uncorrelated(self, other: Term) -> bool:
        """Whether one is linear in weights of mean zero that the other does not know."""
        return any(
            one.weight is not None and one.weight not in two.depends
            for one, two in ((self, other), (other, self))
        )


@dataclass(frozen=True)
class Features:
    """A tensor of the network.

    Arguments:
        step: its number in the program.
        shape: for two rows.
        terms: of which it is the sum.
        axes: where its axes are in (rows, channels, height, width); None for that very order.
    """

    step: int
    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    axes: tuple[int, ...] | None = None

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a grid are the last axis."""
        return self.axes is not None and self.axes[0] == 0 and self.axes[-1] == 1

    @property
    def gaussian(self) -> bool:
        """Whether it is a sum of outputs of linear layers."""
        return all(term.weight is not None for term in self.terms)


def read_program(
    model: nn.Module, x: Tensor, variances: Variances
) -> tuple[Program, Callable[[Tensor], list[Tensor]]]:
    """The steps of a network, and what makes their inputs from rows of data.

    Arguments:
        model: any module that takes one tensor of rows; its weights play no part.
        x: rows; the first two are enough.
        variances: of each layer's weights and biases.

    Raises:
        InputError: the network cannot be traced, or has an operation without an analytic limit,
            which is named.
    """
    example = x[:2] if len(x) > 1 else torch.cat([x, x])
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise InputError("the network has no weights, so its kernel is not that of a random one")
    example = example.detach().to(parameter.device, parameter.dtype)
    reader = _Reader(model, traced(model, example), variances)
    return tuple(reader.steps), reader.data.prepared


class _Reader:
    def __init__(self, model: nn.Module, trace: Trace, variances: Variances) -> None:
        self.trace, self.variances = trace, variances
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Features] = {}
        self.data = DataSteps(dict(model.named_buffers()), trace)
        self._inputs: dict[fx.Node, Features] = {}
        self._used: Counter[str] = Counter()
        for node in trace.graph.nodes:
            if node.op == "output":
                self._end(node)
            elif node.op == "call_function" and not self.data.takes(node):
                self._call(node)

    # -- one operation ------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            if source in self.values and index == 0:
                self.values[node] = self.values[source]  # type: ignore[index]
                return
            self._refuse(node)
        name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        if name.startswith("_assert"):
            return
        if name.endswith("_") and not name.startswith("_"):
            name = name.rstrip("_")
            self._refuse_lost_value(node)
        given = arguments(node)
        read = _OPERATIONS.get(name)
        if name in UNCHANGED:
            found = None if given.get("train") else self._features(node, given)
        elif name in RESHAPING:
            found = self._reshaped(node, given)
        elif name in MOVING:
            found = self._moved(node, given)
        elif name in _ACTIVATIONS:
            found = self._activation(node, name, given)
        else:
            found = None if read is None else read(self, node, given)
        if found is None:
            self._refuse(node)
        self.values[node] = found

    def _linear(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._features(node, given)
        if source.channels_last:  # a convolution with one tap
            weight, variance, bias = self._layer(node, given, source.shape[-1])
            size, one = self.steps[source.step].size, (1, 1)
            taps = Convolution(size, (source.step,), variance, bias, one, one, (0, 0), one)
            return replace(self._added(taps, node, [source], weight), axes=source.axes)
        if len(source.shape) != 2:
            self._refuse(
                node,
                "acts on one axis of several: flatten or pool first, or move the channels to the "
                "last axis",
            )
        weight, variance, bias = self._layer(node, given, source.shape[1])
        return self._added(Linear((1, 1), (source.step,), variance, bias), node, [source], weight)

    def _convolution(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._in_order(node, given)
        groups = int(given.get("groups", 1))
        if given.get("transposed") or len(source.shape) != 4:
            return None
        if groups != 1:
            self._refuse(node, f"has {groups} groups, which stay narrow in the limit")
        shape = node.args[1].meta["val"].shape  # type: ignore[union-attr]
        kernel, dilation = tuple(shape[2:]), _pair(given["dilation"])
        padding = given["padding"]
        if padding == "same":
            reach = [dilation[a] * (kernel[a] - 1) for a in (0, 1)]
            if any(r % 2 for r in reach):
                self._refuse(node, "pads one side more than the other")
            padding = [r // 2 for r in reach]
        elif padding == "valid":
            padding = [0, 0]
        weight, variance, bias = self._layer(node, given, math.prod(shape[1:]))
        step = Convolution(
            _grid(node), (source.step,), variance, bias,
            kernel, _pair(given["stride"]), _pair(padding), dilation,
        )  # fmt: skip
        return self._added(step, node, [source], weight)

    def _activation(self, node: fx.Node, name: str, given: dict[str, Any]) -> Features:
        source = self._features(node, given)
        if not source.gaussian:
            self._refuse(
                node,
                "takes features that are not Gaussian in the limit (what it reads is, or contains, "
                "the output of an activation or the data itself, with no weights in between)",
            )
        dual = _ACTIVATIONS[name](given)
        step = Activation(self.steps[source.step].size, (source.step,), dual)
        return replace(self._added(step, node, [source]), axes=source.axes)

    def _average_pool(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._in_order(node, given)
        if len(source.shape) != 4 or given.get("ceil_mode") or given.get("divisor_override"):
            return None
        kernel = _pair(given["kernel_size"])
        stride = _pair(given["stride"]) if given["stride"] else kernel
        padding = _pair(given["padding"])
        return self._pooled(node, source, kernel, stride, padding, given["count_include_pad"])

    def _adaptive_pool(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._in_order(node, given)
        if len(source.shape) != 4:
            return None
        size, wanted = source.shape[2:], _grid(node)
        if any(size[a] % wanted[a] for a in (0, 1)):
            self._refuse(node, f"pools {tuple(size)} to {wanted} in windows of different sizes")
        kernel = (size[0] // wanted[0], size[1] // wanted[1])
        return self._pooled(node, source, kernel, kernel, (0, 0), True)

    def _mean(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._features(node, given)
        dims = given.get("dim")
        if len(source.shape) != 4 or dims is None:
            return None
        axes = source.axes or (0, 1, 2, 3)
        if {axes[d % 4] for d in dims} != {2, 3}:
            return None
        size = self.steps[source.step].size
        step = AveragePool((1, 1), (source.step,), size, size, (0, 0), True, size)
        kept = source.axes if given.get("keepdim") else None
        return replace(self._handed_on(step, node, [source]), axes=kept)

    def _pooled(
        self,
        node: fx.Node,
        source: Features,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        counts_padding: bool,
    ) -> Features:
        size = self.steps[source.step].size
        step = AveragePool(
            _grid(node), (source.step,), kernel, stride, padding, counts_padding, size
        )
        return self._handed_on(step, node, [source])

    def _layer_norm(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._features(node, given)
        shape, epsilon = tuple(given["normalized_shape"]), float(given["eps"])
        if shape == source.shape[1:]:
            return self._normalised(node, given, source, epsilon)
        if source.channels_last and shape == source.shape[-1:]:
            return self._normalised(node, given, source, epsilon, each_position=True)
        self._refuse(
            node,
            "does not normalise over all features of a row, nor over the channels of a grid as its "
            "last axis (permute(0, 2, 3, 1) before, permute(0, 3, 1, 2) after)",
        )

    def _group_norm(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source = self._in_order(node, given)
        if int(given["num_groups"]) != 1:
            self._refuse(node, "has more than one group")
        return self._normalised(node, given, source, float(given["eps"]))

    def _normalised(
        self,
        node: fx.Node,
        given: dict[str, Any],
        source: Features,
        epsilon: float,
        each_position: bool = False,
    ) -> Features:
        for key in ("weight", "bias"):  # at their initial values, 1 and 0
            if isinstance(given.get(key), fx.Node):
                self._parameter(node, given[key])
        size = self.steps[source.step].size
        step = LayerNorm(size, (source.step,), epsilon, size != (1, 1) and not each_position)
        return self._handed_on(step, node, [source])

    def _sum(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        one, other = given["self"], given["other"]
        if not isinstance(other, fx.Node):
            return self._features(node, given) if other == 0 else None
        if other in self.trace.tensors or one in self.trace.tensors:
            self._refuse(node, "adds a parameter or a buffer that is not a layer's bias")
        terms = [self._operand(node, operand) for operand in (one, other)]
        if terms[0].shape != terms[1].shape:
            return None
        if terms[0].axes != terms[1].axes:
            self._refuse(node, "adds tensors whose axes are in different orders")
        if self.steps[terms[0].step].size != self.steps[terms[1].step].size:
            self._refuse(node, "adds a flattened image to features without positions")
        if not all(a.uncorrelated(b) for a in terms[0].terms for b in terms[1].terms):
            self._refuse(
                node, "adds tensors that are correlated: no weights of its own lie on one branch"
            )
        alpha = given.get("alpha", 1)
        if alpha != 1:
            terms[1] = self._scaled(node, terms[1], float(alpha))
        size = self.steps[terms[0].step].size
        return self._handed_on(Sum(size, (terms[0].step, terms[1].step)), node, terms)

    def _product(self, node: fx.Node, given: dict[str, Any], *, inverse: bool) -> Features | None:
        one, other = given["self"], given["other"]
        if isinstance(one, int | float) and not inverse:
            one, other = other, one
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            self._refuse(node, "multiplies two tensors")
        if not isinstance(other, int | float) or given.get("rounding_mode") is not None:
            return None
        return self._scaled(node, self._operand(node, one), 1 / other if inverse else float(other))

    def _negative(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        return self._scaled(node, self._features(node, given), -1.0)

    def _scaled(self, node: fx.Node, source: Features, factor: float) -> Features:
        step = Scale(self.steps[source.step].size, (source.step,), factor)
        return self._handed_on(step, node, [source])

    def _reshaped(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        source, shape = self._features(node, given), tuple(node.meta["val"].shape)
        rows, numbers = source.shape[0], math.prod(source.shape[1:])
        if source.axes is not None and source.axes[0] != 0:
            self._refuse(node, "reads rows that are not the first axis")
        if math.prod(shape) != rows * numbers or shape[:1] != (rows,):
            self._refuse(node, "mixes the rows of a batch")
        # Flattened, or only axes of one entry came or went.
        same = [s for s in shape if s != 1] == [s for s in source.shape if s != 1]
        if shape[1:] == (numbers,):
            return replace(source, shape=shape, axes=None)
        if same and self.steps[source.step].size == (1, 1):
            # One axis of more than one entry beside the rows: wherever it is, the channels.
            at = next((k for k in range(1, len(shape)) if shape[k] != 1), 1)
            axes = (0, 2, 3, 1) if len(shape) == 4 and at == 3 else None
            if len(shape) == 4 and at == 2:
                self._refuse(node, "leaves the channels between height and width")
            return replace(source, shape=shape, axes=axes)
        return source if shape == source.shape else None

    def _moved(self, node: fx.Node, given: dict[str, Any]) -> Features | None:
        """Axes in another order, found by moving the axes of an example."""
        source = self._features(node, given)
        count = len(source.shape)
        example = torch.empty(tuple(range(2, 2 + count)), device="meta")
        target: Any = node.target
        moved = target(example, *list(given.values())[1:])
        order = tuple(int(s) - 2 for s in moved.shape)
        shape = tuple(source.shape[k] for k in order)
        if count != 4:
            return replace(source, shape=shape) if order == tuple(range(count)) else None
        axes = source.axes or (0, 1, 2, 3)
        now = tuple(axes[k] for k in order)
        return replace(source, shape=shape, axes=None if now == (0, 1, 2, 3) else now)

    # -- helpers ------------------------------------------------------------------------------

    def _features(self, node: fx.Node, given: dict[str, Any]) -> Features:
        return self._operand(node, next(iter(given.values())))

    def _in_order(self, node: fx.Node, given: dict[str, Any]) -> Features:
        """Features of (rows, channels, height, width)."""
        source = self._features(node, given)
        if source.axes is not None:
            self._refuse(node, "takes a grid whose channels were moved: move them back before it")
        return source

    def _operand(self, node: fx.Node, operand: Any) -> Features:
        """Features of an operand: of the network, or of the data where no weights came before."""
        if operand in self.values:
            return self.values[operand]
        if not isinstance(operand, fx.Node) or not self.data.holds(operand):
            self._refuse(node)
        if operand not in self._inputs:
            shape = tuple(operand.meta["val"].shape)
            if len(shape) not in (2, 4):
                self._refuse(node, f"takes rows of shape {shape[1:]}, not features or images")
            size = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
            step = Input(size, (), self.data.wanted(operand))
            self.steps.append(step)
            term = Term(None, frozenset())
            self._inputs[operand] = Features(len(self.steps) - 1, shape, (term,))
        return self._inputs[operand]

    def _added(
        self, step: Step, node: fx.Node, sources: list[Features], weight: str | None = None
    ) -> Features:
        """A step whose output is one new term."""
        depends = frozenset[str]().union(*(t.depends for s in sources for t in s.terms))
        if weight is not None:
            depends |= {weight}
        self.steps.append(step)
        shape = tuple(node.meta["val"].shape)
        return Features(len(self.steps) - 1, shape, (Term(weight, depends),))

    def _handed_on(self, step: Step, node: fx.Node, sources: list[Features]) -> Features:
        """A step that is linear in its sources, whose terms stay what they are."""
        self.steps.append(step)
        value = node.meta["val"]
        shape = tuple((value[0] if isinstance(value, tuple | list) else value).shape)
        terms = tuple(t for s in sources for t in s.terms)
        return Features(len(self.steps) - 1, shape, terms, sources[0].axes)

    def _layer(self, node: fx.Node, given: dict[str, Any], fan_in: int) -> tuple[str, float, float]:
        weight = self._parameter(node, given["weight"])
        bias = self._parameter(node, given["bias"]) if given.get("bias") is not None else None
        return weight, *self.variances(weight, bias, fan_in)

    def _parameter(self, node: fx.Node, operand: fx.Node) -> str:
        name = self.trace.tensors.get(operand)
        if name is None:
            self._refuse(node, "has weights that are computed from something else")
        self._used[name] += 1
        if self._used[name] > 1 or name in self.trace.shared:
            self._refuse(node, f"shares {name!r} with another layer")
        return name

    def _end(self, node: fx.Node) -> None:
        results = [n for n in node.all_input_nodes if n in self.values]
        if len(results) != 1 or len(node.all_input_nodes) != 1:
            raise InputError(
                "the kernel is that of a network with one output tensor, computed from one input"
            )
        result = self.values[results[0]]
        if not result.gaussian or self.steps[result.step].size != (1, 1):
            raise InputError(
                f"the network must end in a Linear layer (or in a convolution and global average "
                f"pooling), not in {described(results[0])}"
            )
        del self.steps[result.step + 1 :]  # of what the output does not depend on

    def _refuse_lost_value(self, node: fx.Node) -> None:
        """Refuse to change a tensor in place of which views are read later: they change too."""
        root = node.args[0]
        while isinstance(root, fx.Node) and _is_view(root):
            root = root.args[0]
        views, later = {root}, False
        for other in node.graph.nodes:
            if later and not views.isdisjoint(other.all_input_nodes):
                self._refuse(node, "changes a tensor in place of which a view is read later")
            if _is_view(other) and other.args[0] in views:
                views.add(other)
            later = later or other is node

    def _refuse(self, node: fx.Node, reason: str = "") -> NoReturn:
        raise InputError(
            f"{described(node)} {reason or 'has no analytic limit of infinite width here'}: "
            f"empirical_kernel estimates the kernel of any network"
        )


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None and schema.name.removeprefix("aten::") in RESHAPING | UNCHANGED | MOVING
    )


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (int(values[0]), int(values[-1]))


def _grid(node: fx.Node) -> tuple[int, int]:
    """Height and width of an operation's result; without axes for them, one position."""
    shape = node.meta["val"].shape
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 else (1, 1)


def _gelu(given: dict[str, Any]) -> Dual:
    if given.get("approximate", "none") == "none":
        return gelu()
    return smooth("gelu(tanh)", partial(nn.functional.gelu, approximate="tanh"))


_ACTIVATIONS: Mapping[str, Callable[[dict[str, Any]], Dual]] = {
    "relu": lambda given: relu(),
    "leaky_relu": lambda given: relu(float(given["negative_slope"])),
    "abs": lambda given: relu(-1.0),
    "erf": lambda given: erf(),
    "gelu": _gelu,
    "tanh": lambda given: smooth("tanh", torch.tanh),
    "sigmoid": lambda given: smooth("sigmoid", torch.sigmoid),
    "silu": lambda given: smooth("silu", nn.functional.silu),
}

_OPERATIONS: Mapping[str, Callable[[_Reader, fx.Node, dict[str, Any]], Features | None]] = {
    "linear": _Reader._linear,
    "conv2d": _Reader._convolution,
    "convolution": _Reader._convolution,
    "avg_pool2d": _Reader._average_pool,
    "adaptive_avg_pool2d": _Reader._adaptive_pool,
    "mean": _Reader._mean,
    "layer_norm": _Reader._layer_norm,
    "group_norm": _Reader._group_norm,
    "add": _Reader._sum,
    "sub": lambda reader, node, given: reader._sum(node, given | {"alpha": -given["alpha"]}),
    "mul": partial(_Reader._product, inverse=False),
    "div": partial(_Reader._product, inverse=True),
    "neg": _Reader._negative,
}
