"""Real data sets, their files and checks, and the splits that the studies train on."""

from planimeter.data.datasets import DATASETS, Dataset, load
from planimeter.data.normalisation import normalise
from planimeter.data.splits import BinarySplit, binary_split, split

__all__ = ["DATASETS", "BinarySplit", "Dataset", "binary_split", "load", "normalise", "split"]
