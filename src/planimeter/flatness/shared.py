"""Results that several measures of one landscape need, computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from planimeter.landscape import LossLandscape

Result = TypeVar("Result")

_shared: ContextVar[dict[tuple[Hashable, ...], tuple[Any, LossLandscape]] | None] = ContextVar(
    "shared", default=None
)


@contextmanager
def sharing() -> Iterator[None]:
    """Inside, `shared` remembers what it computed; nothing is remembered afterwards."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def shared(landscape: LossLandscape, compute: Callable[[], Result], *key: Hashable) -> Result:
    """`compute()`, or what it returned before for the same landscape and key inside `sharing`.

    The key holds everything that the result depends on: every setting, and the seed.
    """
    known = _shared.get()
    if known is None:
        return compute()
    place = (id(landscape), *key)
    if place not in known:
        known[place] = compute(), landscape  # keeps the landscape, so that its id stays its own
    found: Result = known[place][0]
    return found
