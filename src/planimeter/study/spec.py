"""What a study is: data, model, training, grid, measures, statistics and figures, from YAML."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from planimeter.errors import InputError, suggestion
from planimeter.flatness.registry import check_settings
from planimeter.study.data_spec import DataSpec
from planimeter.study.model_spec import ModelSpec
from planimeter.study.optimiser_spec import OptimiserSpec
from planimeter.study.plain_yaml import read
from planimeter.study.section import Number, Section, Whole, in_the_words_of_yaml
from planimeter.study.training_spec import TrainingSpec


class GridSpec(Section):
    """Every optimiser with every attack-set size, several times with other seeds.

    `weight_decay`, if given, replaces that of every optimiser: the grid has its values as well.
    """

    added = frozenset({"weight_decay"})
    optimisers: tuple[OptimiserSpec, ...] = Field(min_length=1)
    attack: tuple[Annotated[Whole, Field(ge=0)], ...] = Field(min_length=1)
    repetitions: Whole = Field(ge=1)
    weight_decay: tuple[Annotated[Number, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1
    )

    @model_validator(mode="after")
    def _distinct(self) -> GridSpec:
        names = [o.name for o in self.optimisers]
        if len(set(names)) < len(names):
            raise ValueError(f"each optimiser may stand in the grid once, got {', '.join(names)}")
        if len(set(self.attack)) < len(self.attack):
            raise ValueError("attack sizes must differ from one another")
        if self.weight_decay is not None:
            if len(set(self.weight_decay)) < len(self.weight_decay):
                raise ValueError("weight decays must differ from one another")
            for optimiser in self.optimisers:
                if "weight_decay" not in type(optimiser).model_fields:
                    raise ValueError(f"{optimiser.name} has no weight decay to put into a grid")
        return self


class PriorSpec(Section):
    """log P(f), under one or several noise conventions; the first is the one that figures show.

    Without any, log P(f) is not computed; `prior: null` says the same.

    Arguments:
        noise: variances, 0 for Heaviside, 1 for probit.
        particles, runs: of the Monte Carlo.
        kernel: "analytic", of infinite width, or "empirical", measured on random networks.
        networks: of the empirical kernel; None for a tenth of the rows.
        sigma_w, sigma_b: of the weights (times root fan-in) and biases that the prior draws; None
            for those of the model's settings, or root 2 and 1 where it has none.
    """

    added = frozenset({"kernel", "networks", "sigma_w", "sigma_b"})
    noise: tuple[Annotated[Number, Field(ge=0)], ...] = (0.0,)
    particles: Whole = Field(default=1000, ge=10)
    runs: Whole = Field(default=8, ge=2)
    kernel: Literal["analytic", "empirical"] = "analytic"
    networks: Whole | None = Field(default=None, ge=2)
    sigma_w: Number | None = Field(default=None, gt=0)
    sigma_b: Number | None = Field(default=None, ge=0)


class StatisticsSpec(Section):
    """Bootstrap of the correlations."""

    bootstrap: Whole = Field(default=2000, ge=100)
    confidence: Number = Field(default=0.95, gt=0, lt=1)


class Study(Section):
    """A whole study."""

    title: str
    source: str = ""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    grid: GridSpec
    measures: dict[str, dict[str, Any]] = Field(default_factory=dict)
    prior: PriorSpec = PriorSpec()
    statistics: StatisticsSpec = StatisticsSpec()
    figures: tuple[str, ...] = ("log_prior",)
    seed: Whole = Field(default=0, ge=0)

    @field_validator("prior", mode="before")
    @classmethod
    def _none_is_no_prior(cls, given: Any) -> Any:
        return {"noise": ()} if given is None else given

    @field_validator("measures")
    @classmethod
    def _known(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        check_settings(given)
        return given

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
        record = self.training.record
        if self.prior.noise and self.data.number_of_classes > 2:
            raise ValueError("log P(f) needs a binary task: set `prior: null` to leave it out")
        if self.prior.networks is not None and self.prior.kernel == "analytic":
            raise ValueError("prior.networks are those of an empirical kernel: set `kernel` too")
        if "log_prior" in self.figures and not self.prior.noise:
            raise ValueError("a figure of log_prior needs prior.noise: name other `figures`")
        if record is not None and record.log_prior and not self.prior.noise:
            raise ValueError("log P(f) is to be recorded: give `prior`, or take it out of `record`")
        for name in self.figures:
            _one_of("figure quantity", name, ["log_prior", *self.measures], self)
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
            raise InputError(
                f"{path} is a folder, not a study file: name the file"
                if path.is_dir()
                else f"no study file at {path}"
            )
        try:
            return parse_study(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8: save it as such") from error
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    raise InputError(
        f"no study {reference!r}: pass a .yaml file or one of {', '.join(built_in)}"
        + suggestion(reference, built_in)
    )


def parse_study(text: str, origin: str) -> Study:
    """A study from YAML text; `origin` is what messages call it."""
    content, tree = read(text, origin)
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
    path, siblings = _followed(first["loc"])
    key = ".".join(str(p) for p in path) or "the study"
    where = f"{origin}, line {_line(tree, path)}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{suggestion(str(path[-1]), siblings)}"
    if first["type"] == "missing":
        return f"{where}: key {key!r} is missing"
    if first["type"] == "union_tag_not_found":
        return f"{where}: {key} needs a `name`"
    message, given = in_the_words_of_yaml(first), first["input"]
    known = re.findall(r"'([^']+)'", str(first.get("ctx", {}).get("expected_tags", "")))
    if first["type"] == "union_tag_invalid":
        what, tag = ("schedule" if "schedule" in path else "optimiser"), str(first["ctx"]["tag"])
        return f"{where}: no {what} {tag!r}; there are {', '.join(known)}{suggestion(tag, known)}"
    said = first["type"] == "value_error" and isinstance(given, dict | list)
    shown = "" if said or _is_long(given) else f" (got {given!r})"
    if first["type"] == "literal_error":
        shown += suggestion(str(given), re.findall(r"'([^']+)'", message))
    return f"{where}: {key}: {message}{shown}"


def _is_long(given: Any) -> bool:
    """Whether a value says more than a message should repeat."""
    return isinstance(given, dict | list | BaseModel) and len(repr(given)) > 60


def _followed(location: tuple[int | str, ...]) -> tuple[list[int | str], list[str]]:
    """A location as keys of the file, and the names that are legal where its last key stands.

    In the location of an error, the tag of a discriminated union follows the place of the union; it
    is no key of the file.
    """
    path: list[int | str] = []
    model: Any = Study
    variants: dict[str, Any] = {}
    for step, part in enumerate(location):
        if variants and not isinstance(part, int):
            model, variants = variants.get(str(part)), {}
            continue
        path.append(part)
        if isinstance(part, int) or model is None or step == len(location) - 1:
            continue
        field = model.model_fields.get(part)
        variants = {
            variant.model_fields["name"].annotation.__args__[0]: variant
            for variant in _specs_in(field)
            if len(_specs_in(field)) > 1
        }
        model = next(iter(_specs_in(field)), None)
    return path, list(model.model_fields) if model is not None else []


def _specs_in(annotation: Any) -> list[Any]:
    """The classes of specifications in a type such as `tuple[A | B, ...]` or `A | None`."""
    annotation = getattr(annotation, "annotation", annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _specs_in(part)]


def _one_of(what: str, name: str, known: Any, result: Any) -> Any:
    if name not in known:
        raise ValueError(
            f"no {what} {name!r}; there are {', '.join(known)}{suggestion(name, known)}"
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
