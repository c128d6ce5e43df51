"""A grid of losses on disk: replaced as a whole after every row, and picked up where it ends."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError
from planimeter.files import whole

SKETCHES = 8
"""Random sums of a direction that are kept to recognise it; a direction may be gigabytes."""
TOLERANCE = 1e-3
"""How far a direction may lie from the stored one, as a part of its length.

Eigenvectors that are computed again agree to their residual, not to the last bit.
"""
LOSS_TOLERANCE = 1e-4
"""How far the loss at theta may lie from the stored one, relatively: it tells the data apart."""


def check_slice_path(path: Path) -> None:
    """Refuse, before anything is computed, a file name that no slice is kept under.

    Raises:
        InputError: the name does not end in .npz.
    """
    if path.suffix != ".npz":
        raise InputError(f"a slice is kept in an .npz file, got {path}")


class SliceFile:
    """The .npz file of one slice: losses and accuracies (rows done, m), and what they are of.

    Arguments:
        path: the file; its folder is made.
        settings: of the landscape and the directions' names, plain JSON values.
        axes: the distances.
        vectors: the directions.
        loss: at theta.

    Raises:
        InputError: the path does not end in .npz.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        axes: Sequence[Float[Tensor, " n"]],
        vectors: Sequence[Float[Tensor, " P"]],
        loss: float,
    ) -> None:
        check_slice_path(path)
        self.path = path
        # A grid may go on on another device, and an eigenvalue in a name may round otherwise.
        self.settings = {k: v for k, v in settings.items() if k not in ("device", "directions")}
        self.axes = {f"axis{i}": axis.numpy() for i, axis in enumerate(axes)}
        self.sketches = np.array([_sketch(v) for v in vectors])
        self.loss = loss

    def resume(
        self, losses: Float[Tensor, "n m"], accuracies: Float[Tensor, "n m"]
    ) -> tuple[int, float]:
        """Fill in the rows that the file has; their number, and the seconds they took.

        Raises:
            InputError: the file is unreadable, or holds another slice; what differs is named.
        """
        if not self.path.exists():
            return 0, 0.0
        try:
            with np.load(self.path, allow_pickle=False) as file:
                stored = dict(file)
            self._refuse_another(stored)
            rows = len(stored["losses"])
            losses[:rows] = torch.from_numpy(stored["losses"])
            accuracies[:rows] = torch.from_numpy(stored["accuracies"])
            return rows, float(stored["seconds"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self.path} is no slice that could be read ({type(error).__name__}): remove it, "
                f"or give another file"
            ) from error

    def save(self, losses: Tensor, accuracies: Tensor, rows: int, seconds: float) -> None:
        """Write the first `rows` rows; the old file stays until the new one is whole.

        Raises:
            InputError: the file cannot be written.
        """
        content: dict[str, Any] = {
            "losses": losses[:rows].numpy(),
            "accuracies": accuracies[:rows].numpy(),
            "settings": np.array(json.dumps(self.settings)),
            "sketches": self.sketches,
            "loss": np.array(self.loss),
            "seconds": np.array(seconds),
            **self.axes,
        }
        with whole(self.path) as beside, beside.open("wb") as file:
            np.savez(file, **content)

    def _refuse_another(self, stored: dict[str, np.ndarray]) -> None:
        settings = json.loads(str(stored["settings"]))
        differing = [
            f"{key} is {settings.get(key)!r} there and {value!r} here"
            for key, value in self.settings.items()
            if settings.get(key) != value
        ]
        axes = [key for key in stored if key.startswith("axis")]
        if sorted(axes) != sorted(self.axes) or not all(
            np.array_equal(stored[key], axis) for key, axis in self.axes.items()
        ):
            differing.append("the distances are others")
        elif not _near(stored["sketches"], self.sketches):
            differing.append("the directions are others")
        there = float(stored["loss"])
        close = math.isclose(there, self.loss, rel_tol=LOSS_TOLERANCE)
        if not close and not (math.isnan(there) and math.isnan(self.loss)):
            differing.append(f"the loss at theta is {there:.6g} there and {self.loss:.6g} here")
        if differing:
            raise InputError(
                f"{self.path} holds another slice ({'; '.join(differing)}): remove it, or give "
                f"another file"
            )


def _sketch(vector: Float[Tensor, " P"]) -> list[float]:
    """The norm and sums with random signs; a change of d moves each sum by about its norm."""
    generator = torch.Generator().manual_seed(0)
    values = vector.cpu()
    sums = []
    for _ in range(SKETCHES):
        signs = torch.randint(0, 2, values.shape, generator=generator, dtype=torch.int8)
        sums.append(2 * float(values[signs.bool()].sum()) - float(values.sum()))
    return [float(values.norm()), *sums]


def _near(stored: np.ndarray, here: np.ndarray) -> bool:
    return stored.shape == here.shape and bool(
        (np.abs(stored - here) <= TOLERANCE * here[:, :1] * SKETCHES**0.5).all()
    )
