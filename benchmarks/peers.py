r"""The installable peers behind one face: a Hessian product, the top eigenvalues, a summary.

Every adapter holds one model, loss and data, with all set-up done when it is made:

    peer = HessianEigenthings(model, x, y, batch_size=256)
    peer.product(v)            # (P,) float32, in the order of model.named_parameters()
    peer.top_eigenvalues(10)   # the peer's own routine, tolerance 1e-3
    peer.summary()             # its lambda_max, trace, frobenius and density, with products spent

A product is made the way that the peer's documentation advises, with its best settings. Peers are
imported when an adapter is made; `version(peer)` says "not installed" where one is missing.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import numpy
import torch
from torch import Tensor, nn

TOLERANCE = 1e-3
PROBES = 100  # curvlinops has no default number; PyHessian and hessian-eigenthings have 100
LANCZOS_STEPS = 128  # of curvlinops' density, which has no default either

# PyHessian's product says this at first use, in the middle of a timing.
warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph")


@dataclass(frozen=True)
class Answer:
    """What a peer said.

    Arguments:
        value: a number; for a density the abscissae and values as the peer gives them; None where
            it failed.
        products: Hessian products spent.
        note: why it failed, or why the number cannot be trusted.
    """

    value: Any
    products: int
    note: str = ""


class Peer:
    """One peer on one problem.

    Arguments:
        model: copied, and put in evaluation mode.
        x: inputs, float32.
        y: targets.
        batch_size: rows a batch.
        loss: a mean over rows, a module with `reduction == "mean"` (curvlinops reads that).
        seed: of the random vectors, for peers that draw from PyTorch's global generator.
    """

    name: ClassVar[str]
    distribution: ClassVar[str]  # as on PyPI
    cannot: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        batch_size: int,
        loss: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        self.model = copy.deepcopy(model).eval()
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.x, self.y, self.seed = x, y, seed
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        self.products = 0  # spent by the peer's own routines; `product` does not count
        with quiet():
            self.set_up()

    def set_up(self) -> None:
        """Everything that a user does once."""
        raise NotImplementedError

    def product(self, v: Tensor) -> Tensor:
        """The Hessian of the mean loss over all rows, times v."""
        raise NotImplementedError

    def top_eigenvalues(self, k: int) -> list[float]:
        """The peer's k largest eigenvalues at tolerance 1e-3; `products` says what they took."""
        self.products = 0
        with self.own_randomness():
            return self.eigenvalues(k, TOLERANCE)

    def eigenvalues(self, k: int, tolerance: float | None) -> list[float]:
        """The peer's eigenvalue routine; None is the tolerance that it has by default."""
        raise NotImplementedError

    def summary(self) -> dict[str, Answer | None]:
        """The peer's separate calls at its default accuracy; None where it has no such thing."""
        return {
            "lambda_max": self.answer(lambda: self.eigenvalues(1, None)[0]),
            "trace": self.answer(self.trace),
            "frobenius": self.answer(self.frobenius),
            "density": self.answer(self.density),
        }

    def trace(self) -> float:
        raise NotImplementedError

    def frobenius(self) -> float:
        raise NotImplementedError

    def density(self) -> tuple[Any, Any]:
        raise NotImplementedError

    def answer(self, call: Callable[[], Any]) -> Answer | None:
        """What `call` returns, or how it failed."""
        self.products = 0
        try:
            with self.own_randomness():
                value = call()
        except NotImplementedError as error:
            if str(error):  # an operation that PyTorch lacks, not a routine that the peer lacks
                return Answer(None, self.products, first_line(error))
            return None
        except Exception as error:
            return Answer(None, self.products, first_line(error))
        return Answer(value, self.products)

    @contextlib.contextmanager
    def own_randomness(self) -> Iterator[None]:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(self.seed)
            yield

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **settings: Any) -> Any:
            self.products += 1
            return call(*arguments, **settings)

        return counting

    def as_list(self, v: Tensor) -> list[Tensor]:
        parts = v.split(self.sizes)
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


class PyHessianLoader(Peer):
    """PyHessian on batches: the gradient's graph is built anew in every product."""

    name = "PyHessian, dataloader"
    distribution = "PyHessian"
    cannot = (
        "density: calls torch.eig, which PyTorch removed in 1.13",
        "largest eigenvalues: power iteration finds the largest magnitudes",
        "Frobenius norm, Gauss-Newton, error bars, a seed",
        "parameters that the loss does not use",
    )

    def set_up(self) -> None:
        hessian = importlib.import_module("pyhessian").hessian
        self.peer = hessian(self.model, self.loss, dataloader=self.batches, cuda=self.x.is_cuda)
        self._product = self.peer.dataloader_hv_product
        self.peer.dataloader_hv_product = self.counted(self._product)

    def product(self, v: Tensor) -> Tensor:
        return flat(self._product(self.as_list(v))[1])

    def eigenvalues(self, k: int, tolerance: float | None) -> list[float]:
        return self.peer.eigenvalues(top_n=k, tol=tolerance or 1e-3)[0]

    def trace(self) -> float:
        return float(numpy.mean(self.peer.trace()))

    def density(self) -> tuple[Any, Any]:
        return self.peer.density()


class PyHessianBatch(PyHessianLoader):
    """PyHessian on one batch of all rows: the graph of its gradient is kept."""

    name = "PyHessian, one batch"

    def set_up(self) -> None:
        # `pyhessian.hessian` the attribute is the class; the module is in sys.modules alone.
        module = importlib.import_module("pyhessian.hessian")
        self.peer = module.hessian(
            self.model, self.loss, data=(self.x, self.y), cuda=self.x.is_cuda
        )
        self._hv = module.hessian_vector_product
        self._module = module

    def product(self, v: Tensor) -> Tensor:
        return flat(self._hv(self.peer.gradsH, self.peer.params, self.as_list(v)))

    @contextlib.contextmanager
    def own_randomness(self) -> Iterator[None]:
        watched = mock.patch.object(self._module, "hessian_vector_product", self.counted(self._hv))
        with watched, super().own_randomness():
            yield


class Landscaper(Peer):
    """Landscaper, which is PyHessian revised, without its cache."""

    name = "landscaper"
    distribution = "landscaper"
    cannot = (
        "density: its weights are the whole squared eigenvector matrix, not the first row",
        "largest eigenvalues: power iteration finds the largest magnitudes",
        "Frobenius norm, Gauss-Newton, error bars, a seed",
        "parameters that the loss does not use",
        "installation beside NumPy 2 without --no-deps",
    )
    cache: ClassVar[bool] = False

    def set_up(self) -> None:
        module = importlib.import_module("landscaper.hessian")
        self.peer = module.PyHessian(
            self.model, self.loss, self.batches, self.x.device.type, try_cache=self.cache
        )
        self._product = self.peer.hv_product
        self.peer.hv_product = self.counted(self._product)

    def product(self, v: Tensor) -> Tensor:
        return flat(self._product(self.as_list(v))[1])

    def eigenvalues(self, k: int, tolerance: float | None) -> list[float]:
        return self.peer.eigenvalues(top_n=k, tol=tolerance or 1e-3)[0]

    def trace(self) -> float:
        return float(self.peer.trace())

    def density(self) -> tuple[Any, Any]:
        return self.peer.density()


class LandscaperCached(Landscaper):
    """Landscaper with `try_cache=True`: the gradient's graph of every batch is kept."""

    name = "landscaper, cache"
    cache = True


class HessianEigenthings(Peer):
    """hessian-eigenthings: an operator on batches, Lanczos, Hutch++, stochastic quadrature.

    Its `lanczos` makes 2 k steps and flags what has not converged; the tolerance sets the flags
    alone. As a user would, this doubles the steps until every flag is up. All products count.
    """

    name = "hessian-eigenthings"
    distribution = "hessian-eigenthings"
    cannot = (
        "batches of unequal sizes: weights them equally",
        "Lanczos to a tolerance: a number of steps is asked for, and repeated from the start",
        "reorthogonalisation beyond 50 steps, unless asked",
        "Frobenius norm",
        "parameters that the loss does not use",
    )
    max_steps: ClassVar[int] = 1000

    def set_up(self) -> None:
        self.package = importlib.import_module("hessian_eigenthings")
        self.peer = self.package.HessianOperator(
            self.model, self.batches, self.package.supervised_loss(self.loss)
        )
        self._product = self.peer.matvec
        self.peer.matvec = self.counted(self._product)

    def product(self, v: Tensor) -> Tensor:
        return self._product(v)

    def eigenvalues(self, k: int, tolerance: float | None) -> list[float]:
        steps = min(2 * k, self.peer.size - 1)
        while True:
            found = self.package.lanczos(
                self.peer, k=k, max_iter=steps, which="LA", tol=tolerance or 1e-4, seed=self.seed
            )
            if bool(found.converged.all()) or steps >= min(self.max_steps, self.peer.size):
                return found.eigenvalues.tolist()
            steps = min(2 * steps, self.max_steps, self.peer.size)

    def trace(self) -> float:
        return self.package.trace(self.peer, seed=self.seed).estimate

    def density(self) -> tuple[Any, Any]:
        found = self.package.spectral_density(self.peer, seed=self.seed)
        return found.raw_eigenvalues, found.raw_weights


class Curvlinops(Peer):
    """curvlinops: a linear operator on a list of batches; eigenvalues are SciPy's.

    `at_once` vectors are multiplied together under `vmap`, at that many times the memory.
    """

    name = "curvlinops"
    distribution = "curvlinops-for-pytorch"
    cannot = (
        "eigenvalues: its documentation sends users to scipy.sparse.linalg.eigsh",
        "Lanczos with reorthogonalisation: the density has ghost copies",
        "error bars, a seed",
        "losses without a `reduction` attribute",
    )
    at_once: ClassVar[int] = 10

    def set_up(self) -> None:
        self.package = importlib.import_module("curvlinops")
        self.peer = self.package.HessianLinearOperator(
            self.model, self.loss, self.parameters, self.batches, check_deterministic=False
        )
        matmat = self.peer._matmat

        def counting(columns: list[Tensor]) -> list[Tensor]:
            self.products += columns[0].shape[-1]
            return matmat(columns)

        self.peer._matmat = counting

    def product(self, v: Tensor) -> Tensor:
        return self.peer @ v

    def eigenvalues(self, k: int, tolerance: float | None) -> list[float]:
        from scipy.sparse.linalg import eigsh

        start = numpy.random.default_rng(self.seed).standard_normal(sum(self.sizes))
        # eigsh's own default, 0, asks for float64 rounding, which float32 products cannot give.
        values = eigsh(
            self.peer.to_scipy(),
            k,
            which="LA",
            tol=tolerance or TOLERANCE,
            v0=start,
            return_eigenvectors=False,
        )
        return sorted(values.tolist(), reverse=True)

    def trace(self) -> float:
        return self._averaged(self.package.hutchinson_trace)

    def frobenius(self) -> float:
        return self._averaged(self.package.hutchinson_squared_fro) ** 0.5

    def density(self) -> tuple[Any, Any]:
        steps = min(LANCZOS_STEPS, sum(self.sizes))
        return self.package.lanczos_approximate_spectrum(self.peer, steps)

    def _averaged(self, estimator: Callable[[Any, int], Tensor]) -> float:
        rounds = PROBES // self.at_once
        return sum(float(estimator(self.peer, self.at_once)) for _ in range(rounds)) / rounds


PEERS: tuple[type[Peer], ...] = (
    PyHessianLoader,
    PyHessianBatch,
    Landscaper,
    LandscaperCached,
    HessianEigenthings,
    Curvlinops,
)


def version(peer: type[Peer]) -> str:
    """The peer's version, or "not installed"."""
    try:
        return importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def installed() -> list[type[Peer]]:
    return [peer for peer in PEERS if version(peer) != "not installed"]


def flat(parts: Any) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, prints and the warning about `backward(create_graph=True)`."""
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
