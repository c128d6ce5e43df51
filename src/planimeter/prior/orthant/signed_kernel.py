r"""The covariance whose positive orthant is P(f), read in panels from the caller's kernel.

With signs :math:`f_i = \pm 1`, noise variance :math:`\varsigma` and
:math:`d_i = f_i / \sqrt{K_{ii} + \varsigma}`,

.. math:: P(f) = P(z > 0), \qquad z \sim N(0, R), \qquad
          R = D\,(K + \varsigma I)\,D, \qquad R_{ii} = 1,

because an orthant depends on correlations alone. R is never stored: panels of its rows are made
from the kernel when they are needed, so that all of P(f) takes one matrix beside the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.errors import InputError
from planimeter.operators.memory import free_memory
from planimeter.prior.orthant.in_place import cholesky_, panels

# Two outputs whose correlation is this close to +-1 are one random variable: what is left is the
# rounding of the kernel itself.
_SAME_VARIABLE = 1e-13


@dataclass(frozen=True)
class SignedKernel:
    """R of the module's docstring, of those inputs that are distinct random variables.

    Arguments:
        kernel: the caller's (N, N) matrix, never copied or changed.
        scale: (n,) d of the distinct inputs.
        noise: variance added to the kernel's diagonal.
        kept: (n,) which inputs are distinct; None for all of them.
        symmetric: whether the kernel is exactly so; otherwise panels are averaged with columns.
    """

    kernel: Float[Tensor, "N N"]
    scale: Float[Tensor, " n"]
    noise: float = 0.0
    kept: Int[Tensor, " n"] | None = None
    symmetric: bool = True

    @property
    def size(self) -> int:
        """n."""
        return len(self.scale)

    @property
    def device(self) -> torch.device:
        """Where the kernel is, and everything made from it."""
        return self.kernel.device

    def signed(self, signs: Float[Tensor, " n"]) -> SignedKernel:
        """The same with row and column i multiplied by signs[i]."""
        return replace(self, scale=self.scale * signs)

    def diagonal(self) -> Float[Tensor, " n"]:
        """Variances, in float64."""
        diagonal = self.kernel.diagonal().to(torch.float64)
        if self.kept is not None:
            diagonal = diagonal[self.kept]
        return (diagonal + self.noise) * self.scale.square()

    def rows(self, start: int, stop: int, columns: int | None = None) -> Float[Tensor, "p m"]:
        """Rows start..stop and the first `columns` of them, in float64, as a new tensor."""
        own = self._columns(slice(start, stop), columns)
        if self.noise:
            diagonal = own[:, start:stop].diagonal()
            diagonal += self.noise * self.scale[start:stop].square()
        return own

    def rows_at(self, indices: Int[Tensor, " w"]) -> Float[Tensor, "w n"]:
        """These rows, in float64, as a new tensor."""
        own = self._columns(indices, None)
        own[range(len(indices)), indices] += self.noise * self.scale[indices].square()
        return own

    def _columns(self, which: slice | Tensor, count: int | None) -> Float[Tensor, "p m"]:
        """Some rows without the noise, and the first `count` columns of them."""
        rows: slice | Tensor = which
        columns: slice | Tensor = slice(0, count)
        if self.kept is not None:
            rows, columns = self.kept[rows], self.kept[columns]
        block = self.kernel[rows][:, columns].to(torch.float64)
        if not self.symmetric:
            block = (block + self.kernel[columns][:, rows].T) / 2
        block = block * self.scale[:count]
        block *= self.scale[which, None]
        return block

    def times(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """R v."""
        if self.kept is None and self.symmetric and self.kernel.dtype == torch.float64:
            scaled = self.scale * vector
            return self.scale * (self.kernel @ scaled + self.noise * scaled)
        return torch.cat([self.rows(*panel) @ vector for panel in panels(self.size)])


def as_signed(kernel: SignedKernel | Float[Tensor, "n n"]) -> SignedKernel:
    """A float64 covariance as it is, with no signs and no scaling."""
    if isinstance(kernel, SignedKernel):
        return kernel
    return SignedKernel(kernel, torch.ones(len(kernel), dtype=torch.float64, device=kernel.device))


@dataclass(frozen=True)
class CheckedKernel:
    """A kernel that passed every check that does not depend on the labels.

    Arguments:
        distinct: the correlation of the distinct inputs, without signs.
        twin: (N,) the first input that is the same random variable as i (i itself where none is).
        twin_sign: (N,) +1 or -1, the sign of that correlation.
        index: (n,) the distinct inputs.
    """

    distinct: SignedKernel
    twin: Int[Tensor, " N"]
    twin_sign: Float[Tensor, " N"]
    index: Int[Tensor, " n"]

    def signed(self, signs: Float[Tensor, " N"]) -> SignedKernel:
        """The covariance whose positive orthant is P(f)."""
        return self.distinct.signed(signs.to(self.distinct.device)[self.index])

    def contradiction(self, signs: Float[Tensor, " N"]) -> tuple[int, int] | None:
        """Two inputs that are the same variable and are labelled oppositely."""
        signs = signs.to(self.twin.device)
        wrong = (signs != self.twin_sign * signs[self.twin]).nonzero().reshape(-1)
        if not len(wrong):
            return None
        pairs = torch.stack([self.twin[wrong], wrong], 1).tolist()
        first, second = min(pairs)
        return first, second

    def leading(self, count: int) -> CheckedKernel:
        """Of the first `count` inputs alone."""
        index = self.index[self.index < count]
        distinct = replace(
            self.distinct,
            kernel=self.distinct.kernel[:count, :count],
            scale=self.distinct.scale[: len(index)],
            kept=None if len(index) == count else index,
        )
        return CheckedKernel(distinct, self.twin[:count], self.twin_sign[:count], index)


def check_kernel(kernel: Float[Tensor, "N N"], n: int, noise: float = 0.0) -> CheckedKernel:
    """Every check that the labels have no part in: shape, finite, symmetric, variances, twins.

    Arguments:
        kernel: (N, N) covariance of the outputs.
        n: number of labels.
        noise: variance to add to its diagonal.

    Raises:
        InputError: the kernel is not square, symmetric or finite, or has a variance that is not
            positive.
    """
    kernel = torch.as_tensor(kernel).detach()
    if not kernel.dtype.is_floating_point:
        kernel = kernel.to(torch.float64)
    if kernel.ndim != 2 or kernel.shape != (n, n):
        raise InputError(f"kernel has shape {tuple(kernel.shape)}, but there are {n} labels")
    symmetric = _check_entries(kernel)
    diagonal = kernel.diagonal().to(torch.float64)
    empty = (diagonal <= 0).nonzero().reshape(-1)
    if len(empty):
        i = int(empty[0])
        raise InputError(f"kernel variance of input {i} is {float(diagonal[i]):g}, not positive")
    everything = SignedKernel(kernel, (diagonal + noise).rsqrt(), noise, None, symmetric)
    twin, twin_sign = _twins(everything)
    index = (twin == torch.arange(n, device=kernel.device)).nonzero().reshape(-1)
    distinct = everything
    if len(index) < n:
        distinct = replace(everything, scale=everything.scale[index], kept=index)
    return CheckedKernel(distinct, twin, twin_sign, index)


def check_rank(kernel: SignedKernel) -> None:
    """Refuse a kernel that is singular although no two inputs are the same.

    Raises:
        InputError: it has a negative eigenvalue, or is of lower rank than its size.
    """
    n = kernel.size
    threshold = 10 * n * torch.finfo(torch.float64).eps
    matrix = dense(kernel)
    if cholesky_(matrix) < 0 and float(matrix.diagonal().square().min()) > threshold:
        return
    del matrix
    spectrum = torch.linalg.eigvalsh(dense(kernel))
    rank = int((spectrum > threshold * spectrum[-1]).sum())
    if float(spectrum[0]) < -1e-8 * float(spectrum[-1]):
        raise InputError(
            f"kernel is not positive semi-definite: scaled to unit diagonal, its smallest "
            f"eigenvalue is {float(spectrum[0]):.2e}"
        )
    raise InputError(
        f"kernel has rank {rank} for {n} distinct inputs, so the orthant may be empty: an "
        f"empirical kernel needs (networks x width) of at least {n}; or pass noise > 0, which "
        f"changes the question to noisy labels"
    )


def check_memory(device: torch.device, n: int, needed: int) -> None:
    """Refuse what cannot fit, before anything is computed.

    Arguments:
        device: of the kernel.
        n: number of inputs.
        needed: bytes beside the kernel.

    Raises:
        InputError: less is free than is needed.
    """
    free = free_memory(device)
    if needed > free:
        raise InputError(
            f"log P(f) of {n} inputs needs {needed / 1e9:.1f} GB of memory beside the kernel, and "
            f"{free / 1e9:.1f} GB are free on {device}: use fewer inputs, or a machine with more"
        )


def dense(kernel: SignedKernel, matrix: Float[Tensor, "n n"] | None = None) -> Float[Tensor, "n n"]:
    """R itself, in float64: written to `matrix`, or to new memory."""
    if matrix is None:
        matrix = torch.empty((kernel.size, kernel.size), dtype=torch.float64, device=kernel.device)
    for start, stop in panels(kernel.size):
        matrix[start:stop] = kernel.rows(start, stop)
    return matrix


def _check_entries(kernel: Float[Tensor, "N N"]) -> bool:
    """Refuse what is not finite or not symmetric; whether the symmetry is exact."""
    difference, largest = 0.0, 1e-300
    for start, stop in panels(len(kernel)):
        rows = kernel[start:stop]
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            entry = (start + int(bad[0, 0]), int(bad[0, 1]))
            raise InputError(f"kernel entry {entry} is not finite (NaN or infinity)")
        difference = max(difference, float((rows - kernel[:, start:stop].T).abs().max()))
        largest = max(largest, float(rows.abs().max()))
    if difference > 1e-6 * largest:
        raise InputError(f"kernel is not symmetric: relative difference {difference / largest:.1e}")
    return difference == 0


def _twins(kernel: SignedKernel) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """For every variable the first one that is the same up to sign, and that sign."""
    twin = torch.arange(kernel.size, device=kernel.device)
    sign = torch.ones(kernel.size, dtype=torch.float64, device=kernel.device)
    for start, stop in panels(kernel.size):
        correlation = kernel.rows(start, stop, stop).tril(start)
        own = torch.arange(stop - start, device=kernel.device)
        correlation[own, own + start] = 1.0  # where rounding leaves the diagonal below the bound
        same = (correlation.abs() - 1).abs() < _SAME_VARIABLE
        first = same.to(torch.uint8).argmax(1)
        twin[start:stop] = first
        sign[start:stop] = correlation[own, first].sign()
    return twin, sign
