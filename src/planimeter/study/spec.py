"""What a study is: data, model, training, grid, measures, statistics and figures, from YAML."""

from __future__ import annotations

import difflib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planimeter.errors import InputError
from planimeter.flatness import MEASURES
from planimeter.study.data_spec import DataSpec
from planimeter.study.model_spec import ModelSpec


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SGDSpec(_Spec):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)


class AdamSpec(_Spec):
    """Adam."""

    name: Literal["adam"]
    lr: float = Field(default=1e-3, gt=0)


class EntropySGDSpec(_Spec):
    """Entropy-SGD; see `planimeter.training.EntropySGD`."""

    name: Literal["entropy_sgd"]
    lr: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    inner_lr: float = Field(default=0.1, gt=0)
    inner_steps: int = Field(default=20, ge=1)
    averaging: float = Field(default=0.75, ge=0, lt=1)
    thermal_noise: float = Field(default=1e-4, ge=0)
    gamma: float = Field(default=1e-4, ge=0)
    scoping: float = Field(default=1e-3, ge=0)


_OPTIMISERS: tuple[Any, ...] = (SGDSpec, AdamSpec, EntropySGDSpec)
OptimiserSpec = Annotated[SGDSpec | AdamSpec | EntropySGDSpec, Field(discriminator="name")]


class TrainingSpec(_Spec):
    """Training to zero error on S."""

    batch_size: int = Field(default=32, ge=1)
    max_epochs: int = Field(default=5000, ge=1)


class GridSpec(_Spec):
    """Every optimiser with every attack-set size, several times with other seeds."""

    optimisers: tuple[OptimiserSpec, ...] = Field(min_length=1)
    attack: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    repetitions: int = Field(ge=1)

    @model_validator(mode="after")
    def _distinct(self) -> GridSpec:
        names = [o.name for o in self.optimisers]
        if len(set(names)) < len(names):
            raise ValueError(f"each optimiser may stand in the grid once, got {', '.join(names)}")
        if len(set(self.attack)) < len(self.attack):
            raise ValueError("attack sizes must differ from one another")
        return self


class PriorSpec(_Spec):
    """log P(f), under one or several noise conventions; the first is the one that figures show.

    Without any, log P(f) is not computed.
    """

    noise: tuple[Annotated[float, Field(ge=0)], ...] = (0.0,)
    particles: int = Field(default=1000, ge=10)
    runs: int = Field(default=8, ge=2)


class StatisticsSpec(_Spec):
    """Bootstrap of the correlations."""

    bootstrap: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)


class Study(_Spec):
    """A whole study."""

    title: str
    source: str = ""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    grid: GridSpec
    measures: dict[str, dict[str, Any]] = {}
    prior: PriorSpec = PriorSpec()
    statistics: StatisticsSpec = StatisticsSpec()
    figures: tuple[str, ...] = ("log_prior",)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        available, largest = self.data.largest_attack_set(), max(self.grid.attack)
        if available < 0:
            raise ValueError(f"{self.data.name} has too few rows: {-available} are missing")
        if available < largest:
            raise ValueError(
                f"{self.data.name} has {available} rows beside the training and test sets, too few "
                f"for an attack set of {largest}"
            )
        for name, settings in self.measures.items():
            _one_of("measure", name, MEASURES, self)
            for setting, value in settings.items():
                known = MEASURES[name].settings
                _one_of(f"setting of {name}", setting, known, self)
                word = isinstance(known[setting], str)
                if not isinstance(value, str if word else int | float):
                    kind = "a word" if word else "a number"
                    raise ValueError(f"{name}.{setting} must be {kind}, got {value!r}")
        for name in self.figures:
            _one_of("figure quantity", name, ["log_prior", *self.measures], self)
        if self.prior.noise and self.model.name != "fully_connected":
            raise ValueError(
                f"log P(f) needs the analytic kernel, which only fully_connected has, not "
                f"{self.model.name}: set `prior: {{noise: []}}` to leave it out"
            )
        if "log_prior" in self.figures and not self.prior.noise:
            raise ValueError("a figure of log_prior needs prior.noise: name other `figures`")
        return self


def built_in_studies() -> dict[str, Traversable]:
    """Study files that come with planimeter, by id (`demo`, `zhang2021/fig3-mnist`)."""
    found: dict[str, Traversable] = {}

    def collect(folder: Traversable, prefix: str) -> None:
        for entry in sorted(folder.iterdir(), key=lambda e: e.name):
            if entry.is_dir():
                collect(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                found[prefix + entry.name.removesuffix(".yaml")] = entry

    collect(resources.files("planimeter") / "studies", "")
    return found


def load_study(reference: str) -> Study:
    """A study by built-in id, or from a YAML file.

    Raises:
        InputError: there is none, or it does not follow the specification; the message names the
            key and its line.
    """
    built_in = built_in_studies()
    if reference in built_in:
        return parse_study(built_in[reference].read_text(encoding="utf-8"), reference)
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no study file at {path}")
        return parse_study(path.read_text(encoding="utf-8"), str(path))
    raise InputError(
        f"no study {reference!r}: pass a .yaml file or one of {', '.join(built_in)}"
        + _suggestion(reference, built_in)
    )


def parse_study(text: str, origin: str) -> Study:
    """A study from YAML text; `origin` is what messages call it."""
    try:
        content = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{origin} must hold keys and values, such as `title:` and `data:`")
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(_explain(error, tree, origin)) from error


def _explain(error: ValidationError, tree: yaml.Node | None, origin: str) -> str:
    """The first complaint in one sentence, with its key and line."""
    # A misspelt key is missing under its right name too; the misspelling is the better news.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    # Discriminated unions put the chosen tag into the location; it is no key of the file.
    path = [p for p in first["loc"] if p not in ("sgd", "adam", "entropy_sgd")]
    key = ".".join(str(p) for p in path) or "the study"
    where = f"{origin}, line {_line(tree, path)}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_suggestion(str(path[-1]), _siblings(path))}"
    if first["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    if first["type"] == "union_tag_invalid":
        known = [spec.model_fields["name"].annotation.__args__[0] for spec in _OPTIMISERS]
        tag = str(first["ctx"]["tag"])
        return (
            f"{where}: no optimiser {tag!r}; there are {', '.join(known)}{_suggestion(tag, known)}"
        )
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (got {given!r})"
    return f"{where}: {key}: {message}{shown}"


def _siblings(path: list[Any]) -> list[str]:
    """Field names that are legal where an unknown key stands."""
    model: Any = Study
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            names = {n for s in _OPTIMISERS for n in s.model_fields}
            return sorted(names)
        model = annotation
    return list(model.model_fields)


def _suggestion(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _one_of(what: str, name: str, known: Any, result: Any) -> Any:
    if name not in known:
        raise ValueError(
            f"no {what} {name!r}; there are {', '.join(known)}{_suggestion(name, known)}"
        )
    return result


def _line(tree: yaml.Node | None, path: list[Any]) -> int:
    """Line of the deepest node of a path that the file has."""
    line = 1
    for part in path:
        if isinstance(tree, yaml.MappingNode):
            entry = next(((k, v) for k, v in tree.value if k.value == part), None)
            if entry is None:
                return line
            line, tree = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(tree, yaml.SequenceNode) and isinstance(part, int):
            tree = tree.value[part]
            line = tree.start_mark.line + 1
    return line
