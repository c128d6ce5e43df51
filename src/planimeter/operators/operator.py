r"""A symmetric matrix known by its products :math:`v \mapsto A v`.

Vectors go in and come out in float64 whatever the dtype of the model, because sums over batches
and the recurrences built on the products need it. The products themselves run in the model's own
dtype, and `epsilon` says how precise that is.

>>> import torch
>>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
>>> operator = CurvatureOperator.from_dense(matrix)
>>> torch.equal(operator.dense(), matrix)
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

Product = Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]


@dataclass(frozen=True)
class CurvatureOperator:
    """A symmetric matrix of size P, matrix-free.

    Arguments:
        size: P.
        product: maps a float64 vector (P,) to the float64 vector A v.
        name: what the matrix is, for messages and records.
        blocks: parameter name to the slice of the P coordinates that belongs to it.
        device: where vectors live.
        epsilon: relative rounding error of one product (machine epsilon of the model's dtype).
    """

    size: int
    product: Product
    name: str
    blocks: dict[str, slice] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    epsilon: float = torch.finfo(torch.float64).eps

    @classmethod
    def from_dense(
        cls, matrix: Float[Tensor, "P P"], name: str = "dense matrix"
    ) -> CurvatureOperator:
        """The operator of an explicit symmetric matrix."""
        exact = matrix.detach().to(torch.float64)
        if exact.ndim != 2 or exact.shape[0] != exact.shape[1]:
            raise InputError(f"{name} of shape {tuple(exact.shape)} is not square")
        slack = 10 * torch.finfo(matrix.dtype).eps if matrix.is_floating_point() else 0.0
        if not float((exact - exact.T).abs().max()) <= slack * float(exact.abs().max()):
            raise InputError(f"{name} of shape {tuple(exact.shape)} is not symmetric and finite")
        return cls(exact.shape[0], ((exact + exact.T) / 2).mv, name, device=exact.device)

    def __matmul__(self, vectors: Float[Tensor, P * k]) -> Float[Tensor, P * k]:
        """A v for one vector (P,) or the columns of (P, k); float64 comes back."""
        if vectors.shape[0] != self.size or vectors.ndim > 2:
            raise InputError(
                f"{self.name} has size {self.size}; cannot multiply {tuple(vectors.shape)}"
            )
        vectors = vectors.to(device=self.device, dtype=torch.float64)
        if vectors.ndim == 1:
            return self.product(vectors)
        return torch.stack([self.product(column) for column in vectors.unbind(1)], dim=1)

    def dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself, by P products, symmetrised; for small P."""
        matrix = self @ torch.eye(self.size, dtype=torch.float64, device=self.device)
        return (matrix + matrix.T) / 2

    def scaled(self, d: Float[Tensor, " P"]) -> CurvatureOperator:
        r""":math:`D^{1/2} A D^{1/2}` with :math:`D = \mathrm{diag}(d)`, every :math:`d_i \ge 0`."""
        if d.shape != (self.size,) or bool((d < 0).any()):
            raise InputError(
                f"scaling needs {self.size} non-negative factors, got {tuple(d.shape)}"
            )
        root = d.to(device=self.device, dtype=torch.float64).sqrt()
        return CurvatureOperator(
            self.size,
            lambda v: root * self.product(root * v),
            f"scaled {self.name}",
            self.blocks,
            self.device,
            self.epsilon,
        )

    def restricted(self, names: list[str]) -> CurvatureOperator:
        """The principal submatrix of the named parameters, in the operator's own order."""
        unknown = [name for name in names if name not in self.blocks]
        if unknown:
            raise InputError(f"no parameter {unknown[0]!r}; there are {', '.join(self.blocks)}")
        indices = torch.arange(self.size, device=self.device)
        kept = {name: part for name, part in self.blocks.items() if name in names}
        selected = torch.cat([indices[part] for part in kept.values()])

        def product(v: Tensor) -> Tensor:
            embedded = torch.zeros(self.size, dtype=torch.float64, device=self.device)
            embedded[selected] = v
            return self.product(embedded)[selected]

        blocks, start = {}, 0
        for name, part in kept.items():
            width = part.stop - part.start
            blocks[name], start = slice(start, start + width), start + width
        return CurvatureOperator(
            start,
            product,
            f"{self.name} restricted to {', '.join(kept)}",
            blocks,
            self.device,
            self.epsilon,
        )

    def to_scipy(self) -> LinearOperator:
        """The same matrix as a `scipy.sparse.linalg.LinearOperator`."""
        from scipy.sparse.linalg import LinearOperator

        def matvec(v):  # type: ignore[no-untyped-def]
            return (self @ torch.as_tensor(v.reshape(-1)).double()).cpu().numpy()

        return LinearOperator(
            (self.size, self.size), matvec=matvec, rmatvec=matvec, dtype="float64"
        )
