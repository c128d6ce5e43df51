"""A population: a table of networks (or functions), one row each, whatever they came from.

*Factors* say how a network was made (optimiser, batch size, weight decay, attack size, seed),
*outcomes* what came of it (test error, train loss), *quantities* what was measured of it (flatness,
log P(f)), each a value with its standard error. Analyses read populations and nothing else.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from planimeter.analysis.result import TooFewError
from planimeter.errors import InputError, suggestion
from planimeter.estimate import Estimate

ERROR = "±"
"""Columns of a table that end like this, or in `_stderr`, are standard errors of another column."""

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Column:
    """Numbers of all members, NaN where a member has none, with their standard errors.

    Arguments:
        values: (n,).
        errors: (n,), at least 0; one meaning as in `Estimate`: value ± 1.96 error covers 95 %.
    """

    values: Values
    errors: Values

    @property
    def finite(self) -> np.ndarray:
        """Which members have the number, (n,) of bool."""
        return np.isfinite(self.values)


@dataclass(frozen=True)
class Population:
    """Networks with their factors, outcomes and quantities; not to be changed.

    Arguments:
        members: names of the rows.
        factors: (n,) values by name, numbers or words.
        outcomes, quantities: columns by name. One name means one thing: no factor, outcome and
            quantity share a name.

    Raises:
        InputError: columns of unequal lengths, a name twice, or a negative error.
    """

    members: tuple[str, ...]
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    outcomes: Mapping[str, Column] = field(default_factory=dict)
    quantities: Mapping[str, Column] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.factors, *self.outcomes, *self.quantities]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(
                f"{twice!r} is a factor, outcome or quantity twice: rename one of the two"
            )
        for name, values in self._arrays():
            if values.shape != (len(self.members),):
                raise InputError(
                    f"column {name!r} has shape {values.shape}, the population {len(self.members)} "
                    f"members"
                )
        for name, column in {**self.outcomes, **self.quantities}.items():
            if (column.errors < 0).any():
                raise InputError(f"column {name!r} has a negative standard error")

    def _arrays(self) -> Iterable[tuple[str, np.ndarray]]:
        yield from self.factors.items()
        for name, column in {**self.outcomes, **self.quantities}.items():
            yield name, column.values
            yield f"{name} {ERROR}", column.errors

    def __len__(self) -> int:
        return len(self.members)

    def __str__(self) -> str:
        def listed(what: str, names: Iterable[str]) -> str:
            return f"{what}: {', '.join(names) or 'none'}"

        levels = (f"{name} ({len(self.levels(name))})" for name in self.factors)
        return "\n".join(
            [
                f"population of {len(self)}",
                listed("factors", levels),
                listed("outcomes", self.outcomes),
                listed("quantities", self.quantities),
            ]
        )

    # -- reading -----------------------------------------------------------------------------

    def column(self, name: str) -> Column:
        """A quantity, an outcome, or a factor whose values are numbers (without error).

        Raises:
            InputError: there is none of that name, with the nearest; or its values are words.
        """
        found = self.quantities.get(name) or self.outcomes.get(name)
        if found is not None:
            return found
        values = self.factor(name)
        try:
            numbers = values.astype(float)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"factor {name!r} has values that are no numbers, such as {values[0]!r}"
            ) from error
        return Column(numbers, np.zeros(len(self)))

    def factor(self, name: str) -> np.ndarray:
        """The values of a factor.

        Raises:
            InputError: there is none of that name; the nearest is suggested.
        """
        if name not in self.factors:
            known = [*self.factors, *self.outcomes, *self.quantities]
            raise InputError(
                f"the population has no {'factor' if name in known else 'column'} {name!r}; there "
                f"are {', '.join(known) or 'none'}{suggestion(name, known)}"
            )
        return self.factors[name]

    def levels(self, name: str) -> list[Any]:
        """The different values of a factor, in order of their first appearance."""
        return list(dict.fromkeys(self.factor(name).tolist()))

    # -- other populations -------------------------------------------------------------------

    def take(self, rows: Sequence[int] | np.ndarray) -> Population:
        """The members of the rows given, by number or by a mask of bool."""
        rows = np.asarray(rows)
        chosen = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)

        def cut(columns: Mapping[str, Column]) -> dict[str, Column]:
            return {n: Column(c.values[chosen], c.errors[chosen]) for n, c in columns.items()}

        return Population(
            tuple(self.members[i] for i in chosen),
            {name: values[chosen] for name, values in self.factors.items()},
            cut(self.outcomes),
            cut(self.quantities),
        )

    def where(self, **factors: Any) -> Population:
        """The members with these values of factors; a list, tuple or set allows several.

        Raises:
            InputError: no such factor.
        TooFewError: no member has these values; names those that occur.
        """
        keep = np.ones(len(self), dtype=bool)
        for name, wanted in factors.items():
            several = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            keep &= np.array([value in several for value in self.factor(name).tolist()], dtype=bool)
        if not keep.any():
            occur = {name: self.levels(name) for name in factors}
            raise TooFewError(f"no member has {factors}; values are {occur}")
        return self.take(keep)

    def by(self, *factors: str) -> dict[tuple[Any, ...], Population]:
        """Sub-populations of equal values of the factors, in order of first appearance."""
        keys = list(zip(*(self.factor(name).tolist() for name in factors), strict=True))
        keys = keys or [()] * len(self)
        rows: dict[tuple[Any, ...], list[int]] = {}
        for row, key in enumerate(keys):
            rows.setdefault(key, []).append(row)
        return {key: self.take(chosen) for key, chosen in rows.items()}

    def finite(self, *names: str) -> Population:
        """The members that have all of these numbers."""
        keep = np.ones(len(self), dtype=bool)
        for name in names:
            keep &= self.column(name).finite
        return self.take(keep)

    def with_quantity(self, name: str, function: Callable[..., Estimate | float]) -> Population:
        """With one quantity more, a function of a member's quantities as keyword estimates."""
        made = [
            function(**{q: Estimate(c.values[i], c.errors[i]) for q, c in self.quantities.items()})
            for i in range(len(self))
        ]
        return replace(self, quantities={**self.quantities, name: _column(made)})

    # -- from and to other forms -------------------------------------------------------------

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        factors: Sequence[str] = (),
        outcomes: Sequence[str] = (),
        quantities: Sequence[str] | None = None,
        member: str | None = None,
    ) -> Population:
        """From one mapping a member.

        Arguments:
            rows: values by column; an `Estimate`, a number, or None or "" where there is none.
                Standard errors may stand in columns `x ±` or `x_stderr` beside x.
            factors, outcomes: which columns are those.
            quantities: which are quantities; None for all others that hold numbers.
            member: the column that names the members; None to number them.

        Raises:
            InputError: a column is missing everywhere, or an outcome or quantity is no number.
        """
        seen = list(dict.fromkeys(name for row in rows for name in row))
        for name in (*factors, *outcomes, *(quantities or ()), *([member] if member else ())):
            if name not in seen:
                raise InputError(
                    f"the table has no column {name!r}; there are {', '.join(seen) or 'none'}"
                    f"{suggestion(name, seen)}"
                )
        errors = {name: e for name in seen for e in _error_columns(name) if e in seen}
        taken = {*factors, *outcomes, *errors.values(), member}
        if quantities is None:
            others = [name for name in seen if name not in taken]
            quantities = [n for n in others if all(_is_number(row.get(n)) for row in rows)]

        def column(name: str) -> Column:
            return _column([_cell(row, name, errors.get(name)) for row in rows])

        return cls(
            tuple(str(row[member]) for row in rows)
            if member
            else tuple(str(i) for i in range(len(rows))),
            {name: _factor([row.get(name) for row in rows]) for name in factors},
            {name: column(name) for name in outcomes},
            {name: column(name) for name in quantities},
        )

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        *,
        factors: Sequence[str] = (),
        outcomes: Sequence[str] = (),
        quantities: Sequence[str] | None = None,
        member: str | None = None,
    ) -> Population:
        """From a CSV file with a header, or a Parquet file (which needs pandas and pyarrow).

        The other arguments are those of `from_rows`.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no table {path}")
        if path.suffix.lower() in (".parquet", ".pq"):
            rows = _pandas("a Parquet table is read").read_parquet(path).to_dict("records")
        else:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
            cut = next(
                (i for i, row in enumerate(rows) if None in row or None in row.values()), None
            )
            if cut is not None:
                raise InputError(
                    f"{path}, line {cut + 2}: more or fewer cells than the header names"
                )
        return cls.from_rows(
            rows, factors=factors, outcomes=outcomes, quantities=quantities, member=member
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One mapping a member: `member`, factors, and columns with their `x ±`."""
        return [
            {"member": name} | {column: _plain(values[i]) for column, values in self._arrays()}
            for i, name in enumerate(self.members)
        ]

    def to_csv(self, path: str | Path) -> None:
        """A CSV file that `from_table` reads again."""
        names = ["member", *(name for name, _ in self._arrays())]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.to_rows())

    def to_frame(self) -> Any:
        """A pandas DataFrame, which needs pandas."""
        return _pandas("a data frame is made").DataFrame(self.to_rows()).set_index("member")


def _column(made: Sequence[Estimate | float | None]) -> Column:
    pairs = [
        (m.value, m.stderr) if isinstance(m, Estimate) else (math.nan if m is None else m, 0.0)
        for m in made
    ]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    # An error that could not be estimated says nothing about the value's use in an analysis.
    return Column(table[:, 0], np.nan_to_num(table[:, 1], nan=0.0))


def _factor(values: list[Any]) -> np.ndarray:
    """Numbers where all are; words else."""
    if all(_is_number(v) and v not in (None, "") for v in values):
        numbers = [float(v) for v in values]
        whole = all(n.is_integer() for n in numbers)
        return np.array([int(n) for n in numbers] if whole else numbers)
    result = np.empty(len(values), dtype=object)
    result[:] = ["" if v is None else v for v in values]
    return result


def _cell(row: Mapping[str, Any], name: str, error: str | None) -> Estimate | float | None:
    value = row.get(name)
    if isinstance(value, Estimate) or value is None or value == "":
        return value if isinstance(value, Estimate) else None
    if not _is_number(value):
        raise InputError(f"column {name!r} holds {value!r}, which is no number")
    stderr = row.get(error) if error else None
    return Estimate(float(value), float(stderr) if stderr not in (None, "") else 0.0)


def _is_number(value: Any) -> bool:
    if value is None or value == "" or isinstance(value, Estimate):
        return True
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _error_columns(name: str) -> tuple[str, ...]:
    return f"{name} {ERROR}", f"{name}{ERROR}", f"{name}_stderr"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _pandas(what: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise InputError(
            f"{what} with pandas, which is not installed: pip install pandas"
        ) from error
    return pandas
