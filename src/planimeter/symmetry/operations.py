"""Which ATen operations are positively homogeneous, and what their arguments are."""

from __future__ import annotations

from typing import Any

from torch import fx

ENTRYWISE = frozenset({"relu", "leaky_relu", "prelu", "abs", "neg", "positive"}) | frozenset(
    {"clone", "contiguous", "detach", "alias", "lift_fresh_copy"}
)
"""Operations on single entries."""
RESHAPING = frozenset({"view", "_unsafe_view"})
"""Those that refuse some layouts of memory, for which `reshape` does the same."""
PADDING = frozenset({"pad", "constant_pad_nd"})
MOVING = (
    RESHAPING
    | PADDING
    | frozenset({"reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"})
    | frozenset({"permute", "transpose", "t", "numpy_T", "movedim", "swapaxes", "flip", "roll"})
    | frozenset({"expand", "expand_as", "repeat", "tile", "cat", "concat", "stack"})
    | frozenset({"slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind"})
    | frozenset({"tensor_split", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"})
)
"""Those that only move entries, repeat them or add zeros."""
POOLING = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "upsample_")
"""Beginnings of the names of those that mix entries of the last dimensions."""
REDUCING = frozenset({"mean", "sum", "amax", "amin", "max", "min"})
SUMS = frozenset({"add", "sub", "maximum", "minimum"})
"""Homogeneous where both operands have the same factor."""
CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution"})
TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


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
