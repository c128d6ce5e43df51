"""What is no tensor in the data, in words, and how it becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def way_out(part: Any) -> str:
    """`; use …` for what can be turned into a tensor; nothing for what is one, or cannot."""
    if isinstance(part, Tensor):
        return ""
    if isinstance(part, np.ndarray):
        return "; use torch.from_numpy for inputs and targets"
    # pandas, polars and their kind are known by what they can do: none of them is needed here.
    if hasattr(part, "to_numpy"):
        return (
            "; use torch.tensor(frame.to_numpy(), dtype=torch.float32) for inputs, and "
            "torch.tensor(column.to_numpy()) for targets"
        )
    if isinstance(part, Mapping):
        return "; pick one of its tensors, or put those of one length side by side (torch.stack)"
    if isinstance(part, tuple | list) and part and all(isinstance(t, Tensor) for t in part):
        return (
            "; put them side by side in one tensor (torch.stack(parts, 1)), and let the loss take "
            "them apart"
        )
    if isinstance(part, tuple | list) and part:
        return way_out(part[0]) or "; use torch.tensor"
    return ""


def kind(part: Any) -> str:
    """What a part of the data is: `a NumPy array`, `a DataFrame`, `a tuple (Tensor, ndarray)`."""
    if isinstance(part, np.ndarray):
        return "a NumPy array"
    if isinstance(part, tuple | list) and 0 < len(part) <= 4:
        return f"a {type(part).__name__} ({', '.join(type(p).__name__ for p in part)})"
    return f"a {type(part).__name__}"


def odd_part(data: Any) -> Any | None:
    """Of inputs and targets the one that is a table or an array instead of a tensor, or None."""
    parts = data if isinstance(data, tuple | list) else (data,)
    odd = (p for p in parts if isinstance(p, np.ndarray) or hasattr(p, "to_numpy"))
    return next(odd, None)
