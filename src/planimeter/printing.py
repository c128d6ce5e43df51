"""Results as plain text: tables of aligned columns, and objects by the shapes of what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

LONGEST = 60
"""Characters of a field that are written out."""
MOST = 4
"""Entries of a tensor whose numbers are written out."""


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their longest cell; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def short_repr(result: Any) -> str:
    """A dataclass by its fields: tensors by their shape, collections by their length."""
    given = [(f.name, getattr(result, f.name)) for f in fields(result) if f.repr]
    return f"{type(result).__name__}({', '.join(f'{name}={_short(v)}' for name, v in given)})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() <= MOST and value.ndim <= 1:
            return str(value.tolist())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    text = f"{value:.6g}" if isinstance(value, float) else ""
    if isinstance(value, dict | list | tuple) and any(map(_is_large, _entries(value))):
        return f"{type(value).__name__} of {len(value)}"
    text = text or repr(value)
    if len(text) <= LONGEST:
        return text
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"{text[:LONGEST]}…"


def _entries(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)
