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
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.errors import InputError
from planimeter.machine.memory import free_memory
from planimeter.prior.orthant.in_place import PANEL, panels

if TYPE_CHECKING:
    from planimeter.prior.orthant.low_rank import LowRankKernel

# Two outputs are one random variable if their correlation is this close to +-1, and so are their
# correlations with all others: what is left is the rounding of the kernel itself. Entries that were
# computed in float64 agree to 1e-13 between equal inputs, those of float32 to a few last digits.
_SAME_VARIABLE = {torch.float64: 1e-13, torch.float32: 4 * torch.finfo(torch.float32).eps}
# Entries (i, j) and (j, i) of a kernel may differ by this, as a share of the root of its variances.
_ASYMMETRY = {torch.float64: 1e-6, torch.float32: 32 * torch.finfo(torch.float32).eps}


@dataclass(frozen=True)
class SignedKernel:
    """R of the module's docstring, of those inputs that are distinct random variables.

    Arguments:
        kernel: the caller's (N, N) matrix, never copied or changed.
        scale: (n,) d of the distinct inputs.
        noise: variance added to the kernel's diagonal.
        kept: (n,) which inputs are distinct; None for all of them.
        symmetric: whether the kernel is exactly so; otherwise panels are averaged with columns.
        eps: rounding of the numbers that the kernel was computed in.
        floor: what every variance is larger by, as a share of itself, where the kernel is singular
            but for rounding.
    """

    kernel: Float[Tensor, "N N"]
    scale: Float[Tensor, " n"]
    noise: float = 0.0
    kept: Int[Tensor, " n"] | None = None
    symmetric: bool = True
    eps: float = torch.finfo(torch.float64).eps
    floor: float = 0.0

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
        return (diagonal + self.noise) * self.scale.square() * (1 + self.floor)

    def missing(self) -> Float[Tensor, " n"]:
        """Variance by which the outputs differ from the kernel's."""
        return torch.full_like(self.scale, self.floor)

    def rows(self, start: int, stop: int, columns: int | None = None) -> Float[Tensor, "p m"]:
        """Rows start..stop and the first `columns` of them, in float64, as a new tensor."""
        own = self._columns(slice(start, stop), columns)
        diagonal = own[:, start:stop].diagonal()
        if self.noise:
            diagonal += self.noise * self.scale[start:stop].square()
        if self.floor:
            diagonal *= 1 + self.floor
        return own

    def rows_at(self, indices: Int[Tensor, " w"]) -> Float[Tensor, "w n"]:
        """These rows, in float64, as a new tensor."""
        own = self._columns(indices, None)
        where = torch.arange(len(indices), device=self.device), indices
        own[where] = (own[where] + self.noise * self.scale[indices].square()) * (1 + self.floor)
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
            result = self.scale * (self.kernel @ scaled + self.noise * scaled)
            return result + self.floor * self.diagonal() / (1 + self.floor) * vector
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
        low_rank: `distinct` as a product of n by r factors, where its rank is low.
    """

    distinct: SignedKernel
    twin: Int[Tensor, " N"]
    twin_sign: Float[Tensor, " N"]
    index: Int[Tensor, " n"]
    low_rank: LowRankKernel | None = None

    def signed(self, signs: Float[Tensor, " N"]) -> SignedKernel:
        """The covariance whose positive orthant is P(f)."""
        return self.distinct.signed(signs.to(self.distinct.device)[self.index])

    @property
    def eps(self) -> float:
        """Rounding of the numbers that the kernel was computed in."""
        return self.distinct.eps

    def contradiction(self, signs: Float[Tensor, " N"]) -> tuple[int, int] | None:
        """Two inputs that are the same variable and are labelled oppositely."""
        signs = signs.to(self.twin.device)
        wrong = (signs != self.twin_sign * signs[self.twin]).nonzero().reshape(-1)
        if not len(wrong):
            return None
        pairs = torch.stack([self.twin[wrong], wrong], 1).tolist()
        first, second = min(pairs)
        return first, second

    def check_same(self, one: int, other: int) -> None:
        """Refuse to call two variables the same where their digits in float32 differ.

        Raises:
            InputError: they do. Equal or almost equal, which is P(f) = 0 or not, is open.
        """
        rows = self.distinct.kernel[[one, other]].to(torch.float64)
        if self.eps > 1e-10 and not torch.equal(*(row / row.abs().max() for row in rows)):
            raise InputError(
                f"inputs {one} and {other} are the same to the digits of float32 but labelled "
                f"differently, so whether P(f) is 0 or how small is not known: compute the kernel "
                f"in float64, remove one, or pass noise > 0"
            )

    def leading(self, count: int) -> CheckedKernel:
        """Of the first `count` inputs alone; what is done about its rank is to be found anew."""
        index = self.index[self.index < count]
        distinct = replace(
            self.distinct,
            kernel=self.distinct.kernel[:count, :count],
            scale=self.distinct.scale[: len(index)],
            kept=None if len(index) == count else index,
            floor=0.0,
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
            positive, or is in half precision.
    """
    kernel = torch.as_tensor(kernel).detach()
    if kernel.is_complex():
        raise InputError(f"a kernel is real, not {kernel.dtype}")
    if not kernel.dtype.is_floating_point:
        kernel = kernel.to(torch.float64)
    if kernel.dtype not in _SAME_VARIABLE:
        raise InputError(
            f"the kernel is in {kernel.dtype}, whose rounding of "
            f"{torch.finfo(kernel.dtype).eps:.0e} moves log P by many nats: compute it in float64, "
            f"or in float32"
        )
    if kernel.ndim != 2 or kernel.shape != (n, n):
        raise InputError(f"kernel has shape {tuple(kernel.shape)}, but there are {n} labels")
    _check_finite(kernel)
    diagonal = kernel.diagonal().to(torch.float64)
    empty = (diagonal <= 0).nonzero().reshape(-1)
    if len(empty):
        i = int(empty[0])
        raise InputError(f"kernel variance of input {i} is {float(diagonal[i]):g}, not positive")
    symmetric = _check_symmetric(kernel, diagonal.rsqrt())
    everything = SignedKernel(
        kernel, (diagonal + noise).rsqrt(), noise, None, symmetric, rounding_of(kernel)
    )
    twin, twin_sign = _twins(everything)
    index = (twin == torch.arange(n, device=kernel.device)).nonzero().reshape(-1)
    distinct = everything
    if len(index) < n:
        distinct = replace(everything, scale=everything.scale[index], kept=index)
    return CheckedKernel(distinct, twin, twin_sign, index)


def rounding_of(kernel: Float[Tensor, "N N"]) -> float:
    """The rounding of the numbers that a kernel was computed in.

    A float64 copy of a kernel that was computed in float32 has the digits of float32: all of its
    entries are float32 numbers, and they are not the few digits of a kernel written by hand or of
    whole numbers, which are exact.
    """
    single, double = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
    if kernel.dtype == torch.float32:
        return single
    full = False
    for start, stop in panels(len(kernel)):
        rows = kernel[start:stop]
        if bool((rows.to(torch.float32) != rows).any()):
            return double
        full = full or bool((rows.to(torch.float32).to(torch.bfloat16) != rows).any())
    whole = full and all(
        bool((kernel[a:b] == kernel[a:b].round()).all()) for a, b in panels(len(kernel))
    )
    return single if full and not whole else double


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


def _check_finite(kernel: Float[Tensor, "N N"]) -> None:
    for start, stop in panels(len(kernel)):
        bad = (~torch.isfinite(kernel[start:stop])).nonzero()
        if len(bad):
            entry = (start + int(bad[0, 0]), int(bad[0, 1]))
            raise InputError(f"kernel entry {entry} is not finite (NaN or infinity)")


def _check_symmetric(kernel: Float[Tensor, "N N"], scale: Float[Tensor, " N"]) -> bool:
    """Refuse what is not symmetric, entry by entry; whether the symmetry is exact."""
    exact, most = True, _ASYMMETRY[kernel.dtype]
    for start, stop in panels(len(kernel)):
        difference = (kernel[start:stop] - kernel[:, start:stop].T).abs()
        if not bool(difference.any()):
            continue
        exact = False
        relative = difference.to(torch.float64) * scale[start:stop, None] * scale
        if float(relative.max()) > most:
            i, j = divmod(int(relative.argmax()), len(kernel))
            raise InputError(
                f"kernel is not symmetric: entries ({start + i}, {j}) and ({j}, {start + i}) "
                f"differ by {float(relative.max()):.1e} of the root of their variances"
            )
    return exact


def _twins(kernel: SignedKernel) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """For every variable the first one that is the same up to sign, and that sign."""
    twin = torch.arange(kernel.size, device=kernel.device)
    sign = torch.ones(kernel.size, dtype=torch.float64, device=kernel.device)
    closest = _SAME_VARIABLE[torch.float64 if kernel.eps < 1e-10 else torch.float32]
    for start, stop in panels(kernel.size):
        correlation = kernel.rows(start, stop, stop).tril(start)
        own = torch.arange(stop - start, device=kernel.device)
        correlation[own, own + start] = 1.0  # where rounding leaves the diagonal below the bound
        same = (correlation.abs() - 1).abs() < closest
        first = same.to(torch.uint8).argmax(1)
        later = (first != own + start).nonzero().reshape(-1)
        for some in later.split(PANEL):
            signs = correlation[some, first[some]].sign()
            apart = kernel.rows_at(some + start) - signs[:, None] * kernel.rows_at(first[some])
            near = apart.abs().amax(1) >= closest
            first[some[near]] = some[near] + start
        twin[start:stop] = first
        sign[start:stop] = correlation[own, first].sign()
    return twin, sign
