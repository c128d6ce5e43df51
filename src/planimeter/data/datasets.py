"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

from planimeter.data import images, tables
from planimeter.data.boolean import boolean_system
from planimeter.data.dataset import Dataset
from planimeter.data.files import FileSet, data_folder
from planimeter.errors import InputError, suggestion


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before its files are read, and how to load it.

    Arguments:
        description: for people.
        rows: in its training and its test part; None where they follow from the settings.
        classes: how many.
        load: reads the files; takes the settings.
        files: None where none are needed.
        class_names: empty where they are numbers only.
        normalisation: what networks are trained on if nothing else is asked for, see `constants`.
        settings: names of what else determines the data set.
    """

    description: str
    rows: tuple[int, int] | None
    classes: int
    load: Callable[..., Dataset]
    files: FileSet | None = None
    class_names: tuple[str, ...] = ()
    normalisation: str = "none"
    settings: tuple[str, ...] = ()


def load(name: str, **settings: int | str) -> Dataset:
    """A data set by name.

    Arguments:
        name: one of DATASETS.
        settings: of `boolean` only: n, target and target_seed, see `boolean_system`.

    Raises:
        InputError: the name or a setting is unknown, or files are missing or damaged.
    """
    info = known(name)
    for setting in settings:
        if setting not in info.settings:
            raise InputError(f"{name} has no setting {setting!r}")
    return _loaded(name, tuple(sorted(settings.items())), data_folder())


def known(name: str) -> DatasetInfo:
    """What is known of a data set.

    Raises:
        InputError: there is none of this name.
    """
    if name not in DATASETS:
        raise InputError(
            f"no data set {name!r}; there are {', '.join(DATASETS)}{suggestion(name, DATASETS)}"
        )
    return DATASETS[name]


@lru_cache(maxsize=2)
def _loaded(name: str, settings: tuple[tuple[str, int | str], ...], _folder: Path) -> Dataset:
    info = DATASETS[name]
    return replace(info.load(**dict(settings)), class_names=info.class_names)


_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_FASHION_CLASSES = "top trouser pullover dress coat sandal shirt sneaker bag boot"
_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm"""


def _table(
    table: tables.Table, description: str, rows: int, class_names: tuple[str, ...] = ()
) -> DatasetInfo:
    return DatasetInfo(
        description,
        (rows, 0),
        2,
        partial(tables.load_table, table),
        table.files,
        class_names,
        normalisation="standardised",
    )


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("8x8 digits, embedded (scikit-learn)", (1797, 0), 10, images.load_digits),
    "mnist": DatasetInfo(
        "28x28 digits",
        (60000, 10000),
        10,
        partial(images.load_idx, images.MNIST),
        images.MNIST,
    ),
    "fashion-mnist": DatasetInfo(
        "28x28 pieces of clothing",
        (60000, 10000),
        10,
        partial(images.load_idx, images.FASHION_MNIST),
        images.FASHION_MNIST,
        tuple(_FASHION_CLASSES.split()),
    ),
    "cifar10": DatasetInfo(
        "32x32 colour photos",
        (50000, 10000),
        10,
        partial(images.load_cifar, images.CIFAR10, 10),
        images.CIFAR10,
        tuple(_CIFAR10_CLASSES.split()),
    ),
    "cifar100": DatasetInfo(
        "32x32 colour photos",
        (50000, 10000),
        100,
        partial(images.load_cifar, images.CIFAR100, 100),
        images.CIFAR100,
        tuple(_CIFAR100_CLASSES.split()),
    ),
    "cifar100-subset": DatasetInfo(
        "a fifth of CIFAR-100, shuffled",
        (10000, 2000),
        100,
        partial(images.load_cifar, images.CIFAR100_SUBSET, 100),
        images.CIFAR100_SUBSET,
        tuple(_CIFAR100_CLASSES.split()),
    ),
    "boolean": DatasetInfo(
        "all 2^n inputs of n bits, embedded; n, target and target_seed are settings",
        None,
        2,
        boolean_system,
        settings=("n", "target", "target_seed"),
    ),
    "ionosphere": _table(tables.IONOSPHERE, "34 radar readings, UCI", 351, ("bad", "good")),
    "sonar": _table(tables.SONAR, "60 sonar readings, UCI", 208, ("rock", "mine")),
    "haberman": _table(tables.HABERMAN, "3 facts about patients, UCI", 306, ("survived", "died")),
    "banknote": _table(tables.BANKNOTE, "4 image statistics, UCI", 1372),
    "breast-cancer-wisconsin": _table(
        tables.BREAST_CANCER,
        "9 cell features, UCI; the 16 rows with a missing value are left out",
        683,
        ("benign", "malignant"),
    ),
}
