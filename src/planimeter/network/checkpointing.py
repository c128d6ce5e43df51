"""Gradient checkpointing, which is left out: what it computes again it computes elsewhere.

`torch.utils.checkpoint` runs a part of the model again in the backward pass, when the module has
its own parameters back, not those at which the landscape is looked at. Away from the module's own
point, gradients would be those of a mixture of the two.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

NAME = "torch.utils.checkpoint"
PARTS = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")


class Unchecked:
    """Inside, `torch.utils.checkpoint.checkpoint` just calls the function it is given."""

    def __enter__(self) -> None:
        # Not imported for this: a model that checkpoints has done so.
        self.module = sys.modules.get(NAME)
        if self.module is not None:
            self.own = [getattr(self.module, part, None) for part in PARTS]
            for part, plain in zip(PARTS, (_Plain, _nothing), strict=True):
                setattr(self.module, part, plain)

    def __exit__(self, *_: object) -> None:
        if self.module is not None:
            for part, own in zip(PARTS, self.own, strict=True):
                setattr(self.module, part, own)


class _Plain:
    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)


def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    """Nothing before the function and nothing after."""
    yield
