"""Which ATen operations are positively homogeneous."""

from __future__ import annotations

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
    | frozenset(
        {
            "permute",
            "transpose",
            "t",
            "numpy_T",
            "mT",
            "adjoint",
            "movedim",
            "swapaxes",
            "flip",
            "roll",
        }
    )
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
CONTRACTIONS = frozenset({"linear", "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm"})
NORMALISATIONS = frozenset({"layer_norm", "group_norm", "rms_norm"})
