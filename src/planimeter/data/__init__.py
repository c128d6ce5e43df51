"""Real data sets, their files and checks, the splits that the studies train on, and batches."""

from planimeter.data.batches import AUGMENTATIONS, OrderedBatches, training_batches
from planimeter.data.channel_constants import NORMALISATIONS, constants
from planimeter.data.classes import binary, grouped
from planimeter.data.dataset import Dataset
from planimeter.data.datasets import DATASETS, load
from planimeter.data.normalisation import normalise
from planimeter.data.splits import Split, binary_split, split
from planimeter.data.stored import StoredInputs
from planimeter.data.wrong_labels import WRONG_LABELS

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "NORMALISATIONS",
    "WRONG_LABELS",
    "Dataset",
    "OrderedBatches",
    "Split",
    "StoredInputs",
    "binary",
    "binary_split",
    "constants",
    "grouped",
    "load",
    "normalise",
    "split",
    "training_batches",
]
