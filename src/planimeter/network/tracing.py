"""The graph of a network's operations in evaluation mode, and where its parameters enter."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from planimeter.errors import InputError
from planimeter.network.modes import evaluation_mode
from planimeter.products.batches import Inputs


@dataclass(frozen=True)
class Trace:
    """A network as a graph of ATen operations.

    Arguments:
        graph: its nodes, in order; placeholders are parameters, buffers and inputs.
        tensors: which placeholder is which parameter or buffer.
        inputs: which placeholder is which input, for reasons in words.
        trainable: names of the parameters that require a gradient.
        shared: names of parameters and buffers whose memory another one uses too.
    """

    graph: fx.Graph
    tensors: dict[fx.Node, str]
    inputs: dict[fx.Node, str]
    trainable: frozenset[str]
    shared: frozenset[str]


def traced(model: nn.Module, example: Inputs) -> Trace:
    """The operations of a model on an example; the model is left as it was.

    Raises:
        InputError: the model cannot be traced; the message says why.
    """
    positional, keywords = arguments_of(example)
    logger = logging.getLogger("torch")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # the exception says what torch logs and prints
        with (
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            warnings.catch_warnings(),
            torch.random.fork_rng(),
            evaluation_mode(model),
        ):
            warnings.simplefilter("ignore")
            program = torch.export.export(model, positional, keywords, strict=False)
    except Exception as error:  # whatever the tracer or the user's own code raises
        lines = str(error).strip().splitlines() or [""]
        if "data-dependent" in lines[0]:
            lines[0] = f"what it computes depends on the values of the data ({lines[0]})"
        raise InputError(
            f"the model cannot be traced, {type(error).__name__}: {lines[0]}"
        ) from error
    finally:
        logger.setLevel(level)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    tensors, inputs = {}, {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = kinds[node.name]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[node] = str(spec.target)
        elif spec.kind is InputKind.USER_INPUT:
            inputs[node] = node.name
    return trace_of(model, program.graph, tensors, inputs)


def trace_of(
    model: nn.Module, graph: fx.Graph, tensors: dict[fx.Node, str], inputs: dict[fx.Node, str]
) -> Trace:
    """A graph with what is known of the model's parameters."""
    parameters = model.named_parameters(remove_duplicate=False)
    trainable = frozenset(name for name, p in parameters if p.requires_grad)
    named = named_tensors(model)
    memory = {name: t.untyped_storage().data_ptr() for name, t in named.items() if t.numel()}
    users = Counter(memory.values())
    shared = frozenset(name for name, pointer in memory.items() if users[pointer] > 1)
    return Trace(graph, tensors, inputs, trainable, shared)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def arguments_of(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How inputs are passed to a model: tuples as its arguments, dicts as its keywords."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple | list) else (example,)), {}


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by name, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    given: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            given[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            given[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            given[argument.name] = argument.default_value
    return given


def described(node: fx.Node) -> str:
    """The operation in words, by its module where that is one of torch's."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = str(path).partition("@")[0]
    if kind.startswith("torch.nn.modules.") and path:
        return f"{path!r} ({kind.rpartition('.')[2]})"
    schema = getattr(node.target, "_schema", None)
    name = schema.name.rpartition("::")[2] if schema else str(node.target)
    return f"the operation {name!r}" + (f" in {path!r}" if path else "")
