"""A command whose options may be given once: the last of two would win without a word."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperOption

from planimeter.errors import InputError


class Once(TyperCommand):
    """A command that refuses an option's second value, unless it is there to be repeated."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left; as typer does it.

        Raises:
            InputError: an option with a value is given more than once.
        """
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(map(id, order)).items():
            found = next(parameter for parameter in order if id(parameter) == option)
            if times == 1 or not isinstance(found, TyperOption):
                continue
            if not (found.multiple or found.is_flag or found.count):
                raise InputError(
                    f"{found.opts[0]} is given {times} times, and one command takes one: run it "
                    f"once for each"
                )
        return super().parse_args(ctx, args)
