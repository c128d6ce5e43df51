"""The graph of the operations that a network ran on an example, where it cannot be traced.

A network whose way depends on its data has no graph that holds for all inputs. What it did for
some is a graph all the same, and whatever the way depended on is in it: a number that was read out
of a tensor is an operation on that tensor. Whether other rows take the same way is for the caller
to check.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from planimeter.errors import InputError
from planimeter.network.modes import evaluation_mode
from planimeter.network.running import without_graph
from planimeter.network.tracing import Trace, arguments_of, named_tensors, trace_of
from planimeter.products.batches import Inputs

aten = torch.ops.aten
_TRANSPOSED_CONVOLUTIONS = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}


def recorded(model: nn.Module, example: Inputs) -> Trace:
    """The operations that a model ran on an example; the model is left as it was.

    Operations come as they reach the device, after torch has taken its own composite ones apart;
    layers are put together again.

    Raises:
        InputError: the model cannot be run on the example; the message says why.
    """
    positional, keywords = arguments_of(example)
    copies: dict[int, Tensor] = {}  # by identity, so that tied ones stay tied
    tensors = {
        name: copies.setdefault(id(tensor), tensor.detach().clone())
        for name, tensor in named_tensors(model).items()
    }

    def ran() -> tuple[_Recorder, Any]:
        recorder = _Recorder(tensors, (positional, keywords))
        with recorder:
            given = dict(tensors), positional, keywords
            return recorder, torch.func.functional_call(model, *given, tie_weights=False)

    try:
        with torch.random.fork_rng(), evaluation_mode(model, at_rest=True):
            recorder, result = without_graph(ran)
    except Exception as error:  # whatever the user's own code raises
        lines = str(error).strip().splitlines() or [""]
        raise InputError(f"the model cannot be run, {type(error).__name__}: {lines[0]}") from error
    return recorder.trace(model, result)


class _Recorder(TorchDispatchMode):
    """Writes a graph while operations run."""

    def __init__(self, tensors: dict[str, Tensor], inputs: Any) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.tensors: dict[fx.Node, str] = {}
        self.inputs: dict[fx.Node, str] = {}
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no id is used again
        for name, tensor in tensors.items():
            self.tensors[self._placeholder(name, tensor)] = name
        for place, leaf in enumerate(tree_leaves(inputs)):
            if isinstance(leaf, Tensor):
                self.inputs[self._placeholder(f"input_{place}", leaf)] = f"input {place}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and write it down."""
        kwargs = kwargs or {}
        operands = tree_map(self._operand, (args, kwargs))
        result = func(*args, **kwargs)
        target, given, single = _put_together(func, *operands)
        node = self.graph.call_function(target, *given)
        if isinstance(result, Tensor):
            self._known(node, result)
        elif isinstance(result, tuple | list) and single:
            self._known(node, result[0])
        elif isinstance(result, tuple | list):
            node.meta["val"] = list(result)
            for place, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._known(self.graph.call_function(operator.getitem, (node, place)), part)
        return result

    def trace(self, model: nn.Module, result: Any) -> Trace:
        """What was recorded."""
        self.graph.output([self._operand(t) for t in _tensors(result)])
        for node in reversed(self.graph.nodes):  # transposes that layers were made of
            if node.target is aten.t.default and not node.users:
                self.graph.erase_node(node)
        return trace_of(model, self.graph, self.tensors, self.inputs)

    def _placeholder(self, name: str, tensor: Tensor) -> fx.Node:
        return self._known(self.graph.placeholder(name.replace(".", "_")), tensor)

    def _known(self, node: fx.Node, tensor: Tensor) -> fx.Node:
        node.meta["val"] = tensor
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        return node

    def _operand(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = self._nodes.get(id(value))
        return node if node is not None else self._known(self.graph.get_attr("constant"), value)


def _put_together(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]], bool]:
    """The operation as a module would have called it, and whether only its first result counts."""
    name = func._schema.name.removeprefix("aten::")
    if name == "addmm" and kwargs.get("alpha", 1) == kwargs.get("beta", 1) == 1:
        weight = _transposed(args[2])
        if weight is not None:
            return aten.linear.default, ((args[1], weight, args[0]), {}), False
    elif name == "mm" and (weight := _transposed(args[1])) is not None:
        return aten.linear.default, ((args[0], weight), {}), False
    elif name == "convolution" and args[6]:
        x, weight, bias, stride, padding, dilation, _, extra, groups = args
        target = _TRANSPOSED_CONVOLUTIONS[len(stride)]
        return target, ((x, weight, bias, stride, padding, extra, groups, dilation), {}), False
    elif name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"):
        return aten.batch_norm.default, ((*args[:8], False), {}), True
    elif name in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update"):
        return aten.batch_norm.default, ((*args[:5], False, *args[5:7], False), {}), True
    elif name == "_adaptive_avg_pool2d":
        return aten.adaptive_avg_pool2d.default, (args, kwargs), False
    elif name == "_reshape_alias":
        return aten.reshape.default, (args[:2], {}), False
    elif name == "_prelu_kernel":
        return aten.prelu.default, (args, kwargs), False
    return func, (args, kwargs), False


def _transposed(node: Any) -> fx.Node | None:
    """Of what a node is the transpose."""
    if not isinstance(node, fx.Node) or node.target is not aten.t.default:
        return None
    source = node.args[0]
    return source if isinstance(source, fx.Node) else None


def _tensors(result: Any) -> list[Tensor]:
    """The tensors among what a model returned, those in an object's attributes included."""
    if not isinstance(result, Tensor | Mapping | tuple | list):
        result = vars(result)
    leaves = tree_leaves(dict(result) if isinstance(result, Mapping) else result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
