"""What a network does to its data before the first weights, computed as it stands.

Flattening, normalisation by constants, padding, pooling of the inputs: none of that is random, so
it needs no kernel. The graph was traced with two rows; here it runs on any number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planimeter.errors import InputError
from planimeter.network import Trace, described

TRACED_ROWS = 2


class DataSteps:
    """The operations of a graph that read the input and constants alone.

    Arguments:
        buffers: the model's constants, by name.
        trace: its graph; parameters are no constants.
    """

    def __init__(self, buffers: dict[str, Tensor], trace: Trace) -> None:
        self._graph = trace.graph
        self._constants = {
            node: buffers[name] for node, name in trace.tensors.items() if name in buffers
        }
        self._rows = set(trace.inputs)
        self._wanted: list[fx.Node] = []

    def holds(self, node: fx.Node) -> bool:
        """Whether a node is data: the input, or computed from it without parameters."""
        return node in self._rows

    def takes(self, node: fx.Node) -> bool:
        """Whether an operation is computed here; it is data from then on."""
        operands = node.all_input_nodes
        known = all(n in self._rows or n in self._constants for n in operands)
        # Normalisation with a scale of its own is a layer; what reads no data is none.
        if not known or not any(n in self._rows for n in operands):
            return False
        schema = getattr(node.target, "_schema", None)
        if schema is not None and schema.is_mutable:
            raise InputError(
                f"{described(node)} changes the network's input in place: use the operation that "
                f"makes a new tensor"
            )
        self._rows.add(node)
        return True

    def wanted(self, node: fx.Node) -> int:
        """The number of a node among the tensors that `prepared` returns."""
        self._wanted.append(node)
        return len(self._wanted) - 1

    def prepared(self, x: Tensor) -> list[Tensor]:
        """The wanted tensors for rows of data, rows last: (height, width, features, rows).

        Raises:
            InputError: an operation on the data mixes rows, or does not run on so many.
        """
        found = [_rows_last(value) for value in self._values(x)]
        rows = min(len(x), 2)
        for node, alone, together in zip(
            self._wanted, self._values(x[:1]), self._values(x[:rows]), strict=True
        ):
            if not torch.allclose(alone, together[:1], rtol=1e-4, atol=1e-6):
                raise InputError(f"{described(node)}: what is done to a row depends on other rows")
        return found

    def _values(self, x: Tensor) -> list[Tensor]:
        known: dict[fx.Node, Any] = {}
        rows = len(x)
        for node in self._graph.nodes:
            if node in self._constants:
                constant = self._constants[node]
                known[node] = constant.to(x) if constant.is_floating_point() else constant
            elif node in self._rows and node.op == "placeholder":
                known[node] = x
            elif node in self._rows:
                known[node] = self._computed(node, known, rows)
        return [known[node] for node in self._wanted]

    def _computed(self, node: fx.Node, known: dict[fx.Node, Any], rows: int) -> Any:
        traced = node.meta.get("val")
        shape = tuple(traced.shape) if isinstance(traced, Tensor) and traced.ndim else (0,)

        def shaped(argument: Any) -> Any:
            """Sizes of a result that begin with the rows of the trace begin with these rows."""
            if not isinstance(argument, list) or len(argument) != len(shape):
                return argument
            return [rows, *argument[1:]] if argument[0] == shape[0] == TRACED_ROWS else argument

        args = [shaped(a) for a in fx.node.map_arg(node.args, known.__getitem__)]
        kwargs = {k: shaped(a) for k, a in fx.node.map_arg(node.kwargs, known.__getitem__).items()}
        target: Any = node.target
        name = getattr(getattr(target, "_schema", None), "name", "")
        if name in ("aten::to", "aten::_to_copy"):  # the precision asked for is that of the kernel
            return args[0]
        if name in ("aten::view", "aten::_unsafe_view"):
            target = torch.ops.aten.reshape.default
        try:
            return target(*args, **kwargs)
        except (RuntimeError, TypeError, IndexError) as error:
            raise InputError(
                f"{described(node)}, which comes before the first weights, fails on {rows} rows: "
                f"{str(error).splitlines()[0]}"
            ) from error


def _rows_last(value: Tensor) -> Tensor:
    if value.ndim == 2:
        return value.T[None, None].contiguous()
    return value.permute(2, 3, 1, 0).contiguous()
