r"""A symmetric matrix known by its products :math:`v \mapsto A v`.

Vectors go in and come out in float64 whatever the dtype of the model, because sums over batches
and the recurrences built on the products need it. The products themselves run in the model's own
dtype, and `epsilon` says how precise that is.

>>> import torch
>>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
>>> operator = CurvatureOperator.from_dense(matrix)
>>> torch.equal(operator.dense(), matrix)
True
>>> (2 * operator).shifted(1.0).dense()
tensor([[5., 2.],
        [2., 7.]], dtype=torch.float64)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from planimeter.errors import InputError

Product = Callable[[Float[Tensor, "P k"]], Float[Tensor, "P k"]]
COLUMNS = 64
"""Columns that `dense` multiplies at a time."""


@dataclass(frozen=True)
class CurvatureOperator:
    """A symmetric matrix of size P, matrix-free.

    Arguments:
        size: P.
        product: maps float64 columns (P, k) to the float64 columns A V.
        name: what the matrix is, for messages and records.
        blocks: parameter name to the slice of the P coordinates that belongs to it.
        device: where vectors live.
        dtype: in which products are computed.
        restrict: makes the principal submatrix of some parameters at less cost than whole
            products have, where that is possible.
    """

    size: int
    product: Product
    name: str
    blocks: dict[str, slice] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float64
    restrict: Callable[[list[str]], CurvatureOperator] | None = None

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
        return cls(exact.shape[0], ((exact + exact.T) / 2).mm, name, device=exact.device)

    @property
    def epsilon(self) -> float:
        """Machine epsilon of `dtype`, the relative rounding error of one operation."""
        return torch.finfo(self.dtype).eps

    def __matmul__(self, vectors: Float[Tensor, " P *k"]) -> Float[Tensor, " P *k"]:
        """A v for one vector (P,) or the columns of (P, k); float64 comes back."""
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.size:
            raise InputError(
                f"{self.name} has size {self.size}; cannot multiply {tuple(vectors.shape)}"
            )
        vectors = vectors.detach().to(device=self.device, dtype=torch.float64)
        if vectors.ndim == 1:
            return self.product(vectors[:, None])[:, 0]
        return self.product(vectors) if vectors.shape[1] else vectors

    def dense(self) -> Float[Tensor, "P P"]:
        """The matrix itself, by P products, symmetrised; for small P."""
        identity = torch.eye(self.size, dtype=torch.float64, device=self.device)
        matrix = torch.cat([self @ columns for columns in identity.split(COLUMNS, dim=1)], dim=1)
        return (matrix + matrix.T) / 2

    def noise(self, seed: int = 0) -> float:
        r"""The relative rounding error of one product, measured.

        .. math:: \| A v - \tfrac1c A (c v) \| \,/\, \| A v \|, \qquad c = 1/3,

        for a random v: rounding acts on v and c v differently. What a measurement resolves below
        this is not there.
        """
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(self.size, generator=generator, dtype=torch.float64).to(self.device)
        product = self @ v
        norm = float(product.norm())
        return float((product - 3 * (self @ (v / 3))).norm()) / norm if norm else 0.0

    # -- other matrices made from this one -------------------------------------------------

    def scaled(self, d: Float[Tensor, " P"]) -> CurvatureOperator:
        r""":math:`D^{1/2} A D^{1/2}` with :math:`D = \mathrm{diag}(d)`, every :math:`d_i \ge 0`."""
        if d.shape != (self.size,) or not bool((d >= 0).all()):
            raise InputError(
                f"scaling needs {self.size} non-negative factors, got {tuple(d.shape)}"
            )
        root = d.to(device=self.device, dtype=torch.float64).sqrt()[:, None]
        return self._with(lambda v: root * self.product(root * v), f"scaled {self.name}")

    def shifted(self, shift: float) -> CurvatureOperator:
        """A + shift times the identity."""
        return self._with(lambda v: self.product(v) + shift * v, f"{self.name} + {shift:g}")

    def __add__(self, other: CurvatureOperator) -> CurvatureOperator:
        """A + B, for matrices of the same size."""
        if self.size != other.size:
            raise InputError(
                f"cannot add {other.name} of size {other.size} to {self.name} of size {self.size}"
            )
        coarser = max(self.dtype, other.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        sums = self._with(
            lambda v: self.product(v) + other.product(v), f"{self.name} + {other.name}"
        )
        return replace(sums, dtype=coarser)

    def __mul__(self, factor: float) -> CurvatureOperator:
        """A times a number."""
        return self._with(lambda v: factor * self.product(v), f"{factor:g} {self.name}")

    __rmul__ = __mul__

    def __neg__(self) -> CurvatureOperator:
        return self * -1.0

    def __sub__(self, other: CurvatureOperator) -> CurvatureOperator:
        """A - B."""
        return self + -other

    def restricted(self, names: list[str]) -> CurvatureOperator:
        """The principal submatrix of the named parameters, in the operator's own order.

        A name is a parameter's (``"layer1.weight"``) or that of a module whose parameters are all
        meant (``"layer1"``).
        """
        kept = {name: self.blocks[name] for name in matching(names, self.blocks)}
        if self.restrict is not None:
            return self.restrict(list(kept))
        indices = torch.arange(self.size, device=self.device)
        selected = torch.cat([indices[part] for part in kept.values()])

        def product(v: Tensor) -> Tensor:
            embedded = v.new_zeros(self.size, v.shape[1])
            embedded[selected] = v
            return self.product(embedded)[selected]

        return CurvatureOperator(
            len(selected),
            product,
            f"{self.name} restricted to {', '.join(kept)}",
            consecutive({name: part.stop - part.start for name, part in kept.items()}),
            self.device,
            self.dtype,
        )

    def to_scipy(self) -> LinearOperator:
        """The same matrix as a `scipy.sparse.linalg.LinearOperator`."""

        def matmat(v):  # type: ignore[no-untyped-def]
            return (self @ torch.as_tensor(v).double()).cpu().numpy()

        def matvec(v):  # type: ignore[no-untyped-def]
            return matmat(v.reshape(-1))

        return LinearOperator(
            (self.size, self.size),
            matvec=matvec,
            rmatvec=matvec,
            matmat=matmat,
            rmatmat=matmat,
            dtype="float64",
        )

    def _with(self, product: Product, name: str) -> CurvatureOperator:
        return replace(self, product=product, name=name, restrict=None)


def matching(names: list[str], parameters: Iterable[str]) -> list[str]:
    """The parameters that are named, or whose module is, in their own order.

    Raises:
        InputError: a name is none of them.
    """
    chosen: set[str] = set()
    for name in names:
        found = {key for key in parameters if key == name or key.startswith(f"{name}.")}
        if not found:
            raise InputError(f"no parameter {name!r}; there are {', '.join(parameters)}")
        chosen |= found
    return [key for key in parameters if key in chosen]


def consecutive(sizes: dict[str, int]) -> dict[str, slice]:
    """Slices of these sizes, one after the other."""
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name], start = slice(start, start + size), start + size
    return parts


def check_operator(operator: CurvatureOperator) -> CurvatureOperator:
    """The operator itself.

    Raises:
        InputError: it is something else; says how to make one.
    """
    if isinstance(operator, CurvatureOperator):
        return operator
    way_out = "such as landscape.hessian()"
    if isinstance(operator, Tensor):
        way_out = "such as CurvatureOperator.from_dense(matrix)"
    elif hasattr(operator, "hessian"):
        way_out = "such as its .hessian() or .gauss_newton()"
    raise InputError(f"this needs a CurvatureOperator, {way_out}, got a {type(operator).__name__}")
