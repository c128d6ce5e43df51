"""The data of a study: which set, which classes, which rows, and what is done to the labels of S.

```yaml
data: {name: cifar10, classes: [automobile, cat], train: 5000, test: 2000}
data: {name: mnist, classes: all, train: 10000, test: 10000, normalisation: granziol2020}
data: {name: boolean, n: 7, target: parity, train: 64, test: 64}
```
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from planimeter.data import NORMALISATIONS, WRONG_LABELS, Split, binary, grouped, load, split
from planimeter.data.boolean import boolean_system
from planimeter.data.classes import (
    against_others,
    check_groups,
    class_numbers,
    default_positive,
)
from planimeter.data.datasets import DATASETS, known
from planimeter.errors import suggestion
from planimeter.study.section import Number, Switch, Whole


def _class(given: Any) -> int | str:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise ValueError("a class is a number or a name")
    return given


def _groups(given: Any) -> Any:
    """`[automobile, [cat, dog]]` as lists."""
    if given is None or given == "all":
        return given
    if not isinstance(given, list | tuple):
        raise ValueError("classes are `all` or a list of classes or of lists of classes")
    groups = (group if isinstance(group, list | tuple) else (group,) for group in given)
    return tuple(tuple(_class(member) for member in group) for group in groups)


class DataSpec(BaseModel):
    """S, E and the pool of attack sets: which data set, which classes, how many rows, which seed.

    Arguments:
        name: of the data set.
        train, test: |S| and |E|.
        positive: the classes that become 1, all others 0; by default class 1 of two and 5 to 9 of
            ten. Numbers or names.
        classes: instead of `positive`: `all` for the classes as they are, or a list whose i-th
            entry is the class, or the list of classes, that gets label i; others are left out.
        seed: of the choice of rows.
        n, target, target_seed: of the Boolean system, see `boolean_system`.
        normalisation: a name in NORMALISATIONS; None for the data set's own.
        wrong_labels: how labels of attack sets and of corruption are made, see `wrong_labels`.
        corruption: the fraction of S that gets wrong labels.
        ladder: whether the attack set of a size contains those of smaller sizes (at the same
            repetition), rather than being one of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    train: Whole = Field(ge=1)
    test: Whole = Field(ge=1)
    positive: tuple[Annotated[Any, BeforeValidator(_class)], ...] | None = None
    classes: Annotated[Any, BeforeValidator(_groups)] = None
    seed: Whole = Field(default=0, ge=0)
    n: Whole | None = None
    target: str | None = None
    target_seed: Whole | None = None
    normalisation: str | None = None
    wrong_labels: str = WRONG_LABELS[0]
    corruption: Number = Field(default=0.0, ge=0, le=1)
    ladder: Switch = False

    @model_validator(mode="before")
    @classmethod
    def _default_positive(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "positive" in given or "classes" in given:
            return given
        name = given.get("name")
        if not isinstance(name, str) or name not in DATASETS:
            return given  # which is complained of below
        return given | {"positive": default_positive(name, DATASETS[name].classes)}

    @model_validator(mode="after")
    def _possible(self) -> DataSpec:
        info = known(self.name)
        for setting in ("n", "target", "target_seed"):
            if getattr(self, setting) is not None and setting not in info.settings:
                raise ValueError(f"{self.name} has no setting {setting!r}")
        if info.settings:
            boolean_system(**self._settings())
        if self.positive is not None and self.classes is not None:
            raise ValueError("give `positive` or `classes`, not both")
        for kind, name, names in (
            ("normalisation", self.normalisation or "none", NORMALISATIONS),
            ("wrong labels", self.wrong_labels, WRONG_LABELS),
        ):
            if name not in names:
                near = suggestion(name, names)
                raise ValueError(f"no {kind} {name!r}; there are {', '.join(names)}{near}")
        if self.positive is not None:
            against_others(self.positive, info.classes, info.class_names)
        elif self.classes != "all":
            check_groups([class_numbers(g, info.classes, info.class_names) for g in self.classes])
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that are not used are left out: a trial's key is a hash of those that are."""
        fields = type(self).model_fields
        always = ("name", "train", "test", "seed")
        return {
            name: value
            for name, value in serialise(self).items()
            if name in always or getattr(self, name) != fields[name].default
        }

    def split(self) -> Split:
        """Load the data set and split it.

        Raises:
            InputError: its files are missing or damaged, or it has too few rows.
        """
        dataset = load(self.name, **self._settings())
        if self.positive is not None:
            dataset = binary(dataset, self.positive)
        elif self.classes != "all":
            dataset = grouped(dataset, self.classes)
        return split(
            dataset,
            train=self.train,
            test=self.test,
            seed=self.seed,
            normalisation=self.normalisation or DATASETS[self.name].normalisation,
            wrong=self.wrong_labels,
        ).corrupted(self.corruption, self.seed)

    @property
    def number_of_classes(self) -> int:
        """Labels of the task: 2 for a binary one, whose networks have one output."""
        if self.positive is not None:
            return 2
        return DATASETS[self.name].classes if self.classes == "all" else len(self.classes)

    def largest_attack_set(self) -> int:
        """Rows beside S and E, before classes are left out: no attack set can be larger."""
        rows = DATASETS[self.name].rows or (2 ** (self.n or 7), 0)
        return rows[0] - self.train - (0 if rows[1] else self.test)

    def _settings(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("n", "target", "target_seed")}
        return {name: value for name, value in given.items() if value is not None}
