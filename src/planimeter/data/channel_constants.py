"""The constants that inputs are normalised by, by name: a paper's, or the statistics of S.

| name | inputs | source |
|---|---|---|
| `none` | as stored, images in [0, 1] | zhang2021 |
| `granziol2020` | one channel: 0.5 and 0.5; three: mean and std of ImageNet | the paper's code |
| `standardised` | each channel (column) to mean 0 and std 1 on S | usual for tables |
"""

from __future__ import annotations

import torch

from planimeter.data.stored import StoredInputs
from planimeter.errors import InputError, suggestion

NORMALISATIONS = ("none", "granziol2020", "standardised")

Constants = tuple[tuple[float, ...] | None, tuple[float, ...] | None]

_GRANZIOL2020: dict[int, Constants] = {
    1: ((0.5,), (0.5,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_CHUNK = 1000


def constants(name: str, train: StoredInputs) -> Constants:
    """Mean and std of a normalisation by name, for `StoredInputs.normalised`.

    Arguments:
        name: one of NORMALISATIONS.
        train: S, all that `standardised` looks at. A channel that is constant on it is shifted
            only.

    Returns:
        a number a channel each; None for zeros and ones.

    Raises:
        InputError: there is none of this name, or it has no constants for so many channels.
    """
    channels = train.shape[1]
    if name == "none":
        return None, None
    if name == "standardised":
        return _statistics(train)
    if name not in NORMALISATIONS:
        raise InputError(
            f"no normalisation {name!r}; there are {', '.join(NORMALISATIONS)}"
            + suggestion(name, NORMALISATIONS)
        )
    if channels not in _GRANZIOL2020:
        raise InputError(f"{name} has constants for 1 or 3 channels, these inputs have {channels}")
    return _GRANZIOL2020[channels]


def _statistics(train: StoredInputs) -> Constants:
    """Mean and standard deviation of each channel in float64, some rows at a time."""
    train = train.normalised(None, None)
    means, variances = [], []
    chunks = torch.arange(len(train)).split(_CHUNK)
    for rows in chunks:
        values = train[rows].double().transpose(0, 1).flatten(1)
        means.append(values.mean(1))
        variances.append(values.var(1, correction=0))
    weights = torch.tensor([len(rows) for rows in chunks], dtype=torch.float64) / len(train)
    weights = weights.to(means[0].device)
    mean = weights @ torch.stack(means)
    between = (torch.stack(means) - mean).square()
    std = (weights @ (torch.stack(variances) + between)).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist())
