# ruff: noqa: E501, B008 - a table: an entry is a line
"""The networks of `silent_errors.py`: one stock layer, function or loss of torch in each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations as P

ROWS = 7
Shape = tuple[int, ...]


@dataclass
class Entry:
    """A network, its loss and its rows.

    Arguments:
        kind: "layer", "function" or "loss".
        name: as in torch, with arguments that matter.
    """

    kind: str
    name: str
    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    inputs: Any
    targets: Tensor


class Around(nn.Module):
    """A linear layer to the shape wanted, what is looked at, and a linear layer to three classes."""

    def __init__(
        self, inner: Callable[[Tensor], Any], shape: Shape, first: nn.Module | None
    ) -> None:
        super().__init__()
        size = int(torch.tensor(shape).prod())
        self.first, self.shape = first or nn.Linear(3, size), shape
        self.inner = inner
        with torch.no_grad():
            example = self.through(torch.randn(ROWS, 3) if first is None else _tokens(first))
        self.last = nn.Linear(example.flatten(1).shape[1], 3)

    def through(self, x: Tensor) -> Tensor:
        """What comes out of what is looked at."""
        h = self.first(x)
        result = self.inner(h.reshape(len(h), *self.shape))
        while isinstance(result, tuple):
            result = result[0]
        return result if result.is_floating_point() else result.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.last(self.through(x).flatten(1))
        return out


class Call(nn.Module):
    """A module that is called in another way."""

    def __init__(self, module: nn.Module, how: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.module, self.how = module, how

    def forward(self, h: Tensor) -> Any:
        """As the way says."""
        return self.how(self.module, h)


def _tokens(first: nn.Module) -> Tensor:
    return torch.randint(0, 5, (ROWS, 2))


def entries() -> Iterator[Entry]:
    """All of them, each made from the same seed."""
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for kind, table in (("layer", _layers()), ("function", _functions())):
        for name, (make, shape) in table.items():
            torch.manual_seed(0)
            model = Around(make() if kind == "layer" else make, shape, None)
            inputs = torch.randn(ROWS, 3)
            yield Entry(kind, name, model, F.cross_entropy, inputs, torch.arange(ROWS) % 3)
    for name, bag in (
        ("Embedding", nn.Embedding(5, 2)),
        ("Embedding(padding_idx=0)", nn.Embedding(5, 2, padding_idx=0)),
        ("Embedding(max_norm=1)", nn.Embedding(5, 2, max_norm=1.0)),
        ("Embedding(sparse=True)", nn.Embedding(5, 2, sparse=True)),
        ("Embedding(scale_grad_by_freq=True)", nn.Embedding(5, 2, scale_grad_by_freq=True)),
        ("EmbeddingBag", nn.EmbeddingBag(5, 4)),
        ("EmbeddingBag(mode='sum')", nn.EmbeddingBag(5, 4, mode="sum")),
        ("EmbeddingBag(mode='max')", nn.EmbeddingBag(5, 4, mode="max")),
    ):
        torch.manual_seed(0)
        bag.weight.data.mul_(0.3)  # shorter than `max_norm`
        model = Around(nn.Tanh(), (4,), bag)
        yield Entry("layer", name, model, F.cross_entropy, _tokens(bag), torch.arange(ROWS) % 3)
    for name, (loss, outputs, targets) in _losses().items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))
        yield Entry("loss", name, model, loss, torch.randn(ROWS, 3), targets)


# -- layers --------------------------------------------------------------------------------------


def _layers() -> dict[str, tuple[Callable[[], nn.Module], Shape]]:
    vector, line, grid, cube = (6,), (2, 6), (2, 4, 4), (1, 3, 3, 3)
    table: dict[str, tuple[Callable[[], nn.Module], Shape]] = {}
    for make in (
        nn.Identity, nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.Hardswish,
        nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU,
        nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh,
        nn.Tanhshrink, nn.GLU, nn.Dropout, nn.AlphaDropout, nn.Flatten,
    ):  # fmt: skip
        table[make.__name__] = (make, vector)
    table |= {
        "GELU(approximate='tanh')": (lambda: nn.GELU("tanh"), vector),
        "Softplus(beta=5)": (lambda: nn.Softplus(5), vector),
        "PReLU(6)": (lambda: nn.PReLU(6), vector),
        "Threshold(0.1, 0.2)": (lambda: nn.Threshold(0.1, 0.2), vector),
        "ReLU(inplace=True)": (lambda: nn.ReLU(inplace=True), vector),
        "ELU(inplace=True)": (lambda: nn.ELU(inplace=True), vector),
        "Softmin(1)": (lambda: nn.Softmin(1), vector),
        "Softmax(1)": (lambda: nn.Softmax(1), vector),
        "LogSoftmax(1)": (lambda: nn.LogSoftmax(1), vector),
        "Softmax2d": (nn.Softmax2d, (3, 2, 2)),
        "Linear": (lambda: nn.Linear(6, 2), vector),
        "Bilinear": (lambda: Call(nn.Bilinear(3, 3, 2), lambda m, h: m(h[:, :3], h[:, 3:])), vector),
        "CosineSimilarity": (
            lambda: Call(nn.CosineSimilarity(1), lambda m, h: m(h[:, :3], h[:, 3:])[:, None]),
            vector,
        ),
        "PairwiseDistance": (
            lambda: Call(nn.PairwiseDistance(), lambda m, h: m(h[:, :3], h[:, 3:])[:, None]),
            vector,
        ),
        "PairwiseDistance(p=1)": (
            lambda: Call(nn.PairwiseDistance(1), lambda m, h: m(h[:, :3], h[:, 3:])[:, None]),
            vector,
        ),
        "Unflatten": (lambda: nn.Unflatten(1, (2, 3)), vector),
        "LayerNorm": (lambda: nn.LayerNorm(6), vector),
        "RMSNorm": (lambda: nn.RMSNorm(6), vector),
        "BatchNorm1d": (lambda: nn.BatchNorm1d(6), vector),
        "BatchNorm1d(track_running_stats=False)": (
            lambda: nn.BatchNorm1d(6, track_running_stats=False), vector,
        ),
        "GroupNorm": (lambda: nn.GroupNorm(2, 6), vector),
        "RNNCell": (lambda: nn.RNNCell(6, 2), vector),
        "LSTMCell": (lambda: nn.LSTMCell(6, 2), vector),
        "GRUCell": (lambda: nn.GRUCell(6, 2), vector),
        "Conv1d": (lambda: nn.Conv1d(2, 1, 3), line),
        "Conv1d(groups=2)": (lambda: nn.Conv1d(2, 2, 3, groups=2), line),
        "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 1, 3), line),
        "InstanceNorm1d(affine=True)": (lambda: nn.InstanceNorm1d(2, affine=True), line),
        "MaxPool1d": (lambda: nn.MaxPool1d(2), line),
        "AvgPool1d": (lambda: nn.AvgPool1d(2), line),
        "LPPool1d(2)": (lambda: nn.LPPool1d(2, 2), line),
        "LPPool1d(3)": (lambda: nn.LPPool1d(3, 2), line),
        "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(2), line),
        "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), line),
        "Dropout1d": (nn.Dropout1d, line),
        "Upsample(linear)": (lambda: nn.Upsample(scale_factor=2, mode="linear"), line),
        "RNN": (lambda: nn.RNN(2, 2, batch_first=True), (3, 2)),
        "RNN(nonlinearity='relu')": (
            lambda: nn.RNN(2, 2, batch_first=True, nonlinearity="relu"), (3, 2),
        ),
        "RNN(2 layers, bidirectional)": (
            lambda: nn.RNN(2, 2, 2, batch_first=True, bidirectional=True), (2, 2),
        ),
        "LSTM": (lambda: nn.LSTM(2, 2, batch_first=True), (3, 2)),
        "LSTM(proj_size=1)": (lambda: nn.LSTM(2, 2, batch_first=True, proj_size=1), (3, 2)),
        "LSTM(bidirectional)": (
            lambda: nn.LSTM(2, 1, batch_first=True, bidirectional=True), (2, 2),
        ),
        "GRU": (lambda: nn.GRU(2, 2, batch_first=True), (3, 2)),
        "MultiheadAttention": (
            lambda: Call(nn.MultiheadAttention(2, 2, batch_first=True), lambda m, h: m(h, h, h)),
            (3, 2),
        ),
        "TransformerEncoderLayer": (
            lambda: nn.TransformerEncoderLayer(2, 1, 3, batch_first=True), (3, 2),
        ),
        "TransformerEncoderLayer(gelu, norm_first)": (
            lambda: nn.TransformerEncoderLayer(
                2, 1, 3, batch_first=True, norm_first=True, activation="gelu"
            ),
            (3, 2),
        ),
        "TransformerDecoderLayer": (
            lambda: Call(
                nn.TransformerDecoderLayer(2, 1, 2, batch_first=True), lambda m, h: m(h, h.flip(1))
            ),
            (2, 2),
        ),
        "Transformer": (
            lambda: Call(
                nn.Transformer(2, 1, 1, 1, 2, batch_first=True), lambda m, h: m(h, h.flip(1))
            ),
            (2, 2),
        ),
        "Conv2d": (lambda: nn.Conv2d(2, 1, 3), grid),
        "Conv2d(stride=2, dilation=2)": (
            lambda: nn.Conv2d(2, 1, 2, stride=2, dilation=2, padding=1), grid,
        ),
        "Conv2d(padding_mode='circular')": (
            lambda: nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), grid,
        ),
        "Conv2d(padding_mode='reflect')": (
            lambda: nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect"), grid,
        ),
        "Conv2d(padding_mode='replicate')": (
            lambda: nn.Conv2d(2, 1, 3, padding=1, padding_mode="replicate"), grid,
        ),
        "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 1, 2), grid),
        "BatchNorm2d": (lambda: nn.BatchNorm2d(2), grid),
        "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2), grid),
        "InstanceNorm2d(track_running_stats)": (
            lambda: nn.InstanceNorm2d(2, track_running_stats=True), grid,
        ),
        "GroupNorm on a grid": (lambda: nn.GroupNorm(1, 2), grid),
        "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), grid),
        "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(2), grid),
        "MaxPool2d": (lambda: nn.MaxPool2d(2), grid),
        "MaxUnpool2d": (
            lambda: Call(
                nn.MaxUnpool2d(2), lambda m, h: m(*F.max_pool2d(h, 2, return_indices=True))
            ),
            grid,
        ),
        "AvgPool2d": (lambda: nn.AvgPool2d(2), grid),
        "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_size=2), grid),
        "LPPool2d": (lambda: nn.LPPool2d(2, 2), grid),
        "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), grid),
        "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), grid),
        "Dropout2d": (nn.Dropout2d, grid),
        "Unfold": (lambda: nn.Unfold(2), grid),
        "Fold": (lambda: nn.Fold((3, 3), 2), (4, 4)),
        "PixelShuffle": (lambda: nn.PixelShuffle(2), (4, 2, 2)),
        "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), grid),
        "ChannelShuffle": (lambda: nn.ChannelShuffle(2), (4, 2, 2)),
        "Upsample(nearest)": (lambda: nn.Upsample(scale_factor=2), (1, 2, 2)),
        "Upsample(bilinear)": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 2)),
        "Upsample(bicubic)": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 2, 2)),
        "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d(scale_factor=2), (1, 2, 2)),
        "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), (1, 2, 2)),
        "Conv3d": (lambda: nn.Conv3d(1, 1, 2), cube),
        "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 1, 2), (1, 2, 2, 2)),
        "BatchNorm3d": (lambda: nn.BatchNorm3d(1), (1, 2, 2, 2)),
        "InstanceNorm3d": (lambda: nn.InstanceNorm3d(1), (1, 2, 2, 2)),
        "MaxPool3d": (lambda: nn.MaxPool3d(2), cube),
        "AvgPool3d": (lambda: nn.AvgPool3d(2), cube),
        "FractionalMaxPool3d": (lambda: nn.FractionalMaxPool3d(2, output_size=1), cube),
        "LPPool3d": (lambda: nn.LPPool3d(2, 2), cube),
        "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(2), cube),
        "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), cube),
        "Upsample(trilinear)": (
            lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (1, 1, 2, 2),
        ),
    }  # fmt: skip
    small = {1: (1, 4), 2: (1, 2, 2), 3: (1, 2, 2, 2)}
    for d, shape in small.items():
        for name in ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"):
            pad = getattr(nn, f"{name}{d}d")
            table[f"{name}{d}d"] = (lambda pad=pad: pad(1), shape)
        constant = getattr(nn, f"ConstantPad{d}d")
        table[f"ConstantPad{d}d"] = (lambda pad=constant: pad(1, 0.5), shape)
    for name, wrap in (
        ("parametrizations.weight_norm", P.weight_norm),
        ("parametrizations.weight_norm(dim=None)", lambda m: P.weight_norm(m, dim=None)),
        ("utils.weight_norm", nn.utils.weight_norm),
        ("parametrizations.spectral_norm", P.spectral_norm),
        ("utils.spectral_norm", nn.utils.spectral_norm),
        (
            "parametrizations.orthogonal(matrix_exp)",
            lambda m: P.orthogonal(m, orthogonal_map="matrix_exp"),
        ),
        ("parametrizations.orthogonal(cayley)", lambda m: P.orthogonal(m, orthogonal_map="cayley")),
        (
            "parametrizations.orthogonal(householder)",
            lambda m: P.orthogonal(m, orthogonal_map="householder"),
        ),
    ):
        table[name] = (lambda wrap=wrap: wrap(nn.Linear(3, 2)), (3,))
    table["parametrizations.weight_norm on Conv2d"] = (
        lambda: P.weight_norm(nn.Conv2d(2, 1, 3)), grid,
    )  # fmt: skip
    return table


# -- functions -----------------------------------------------------------------------------------


def _functions() -> dict[str, tuple[Callable[[Tensor], Any], Shape]]:
    vector, square = (4,), (2, 2)
    table: dict[str, tuple[Callable[[Tensor], Any], Shape]] = {}

    def positive(h: Tensor) -> Tensor:
        return F.softplus(h) + 0.3

    def definite(h: Tensor) -> Tensor:
        return h @ h.transpose(-1, -2) + torch.eye(2)

    for name in (
        "exp", "expm1", "exp2", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "atan", "erf",
        "erfc", "abs", "square", "sigmoid", "sinc", "floor", "round", "sign", "trunc", "frac",
        "relu", "selu", "celu", "cumsum_", "cumprod_", "logcumsumexp_", "cummax_", "flip_", "angle",
    ):  # fmt: skip
        if name.endswith("_"):
            along = getattr(torch, name[:-1])
            wrapped = (
                (lambda h, f=along: f(h, (1,))) if name == "flip_" else (lambda h, f=along: f(h, 1))
            )
            table[f"torch.{name[:-1]}"] = (wrapped, vector)
        else:
            table[f"torch.{name}"] = (getattr(torch, name), vector)
    for name in (
        "log",
        "log2",
        "log10",
        "log1p",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "lgamma",
        "digamma",
    ):
        table[f"torch.{name}"] = (lambda h, f=getattr(torch, name): f(positive(h)), vector)
    for name in ("asin", "acos", "atanh", "erfinv"):
        table[f"torch.{name}"] = (lambda h, f=getattr(torch, name): f(0.8 * h.tanh()), vector)
    for name in (
        "i0", "i0e", "i1", "i1e", "ndtr", "log_ndtr", "expit", "bessel_j0", "bessel_j1", "erfcx",
        "psi", "entr", "gammaln", "modified_bessel_k0", "airy_ai", "spherical_bessel_j0",
    ):  # fmt: skip
        table[f"torch.special.{name}"] = (
            lambda h, f=getattr(torch.special, name): f(positive(h)), vector,
        )  # fmt: skip
    halves = {
        "torch.atan2": torch.atan2, "torch.hypot": torch.hypot, "torch.logaddexp": torch.logaddexp,
        "torch.maximum": torch.maximum, "torch.fmod": torch.fmod,
        "torch.special.xlogy": lambda a, b: torch.special.xlogy(a, positive(b)),
        "torch.pow": lambda a, b: positive(a) ** b, "torch.remainder": torch.remainder,
        "torch.special.gammainc": lambda a, b: torch.special.gammainc(torch.ones_like(a), positive(b)),
        "torch.copysign": torch.copysign, "torch.lerp": lambda a, b: torch.lerp(a, b, 0.3),
    }  # fmt: skip
    for name, pair in halves.items():
        table[name] = (lambda h, f=pair: f(h[:, :2], h[:, 2:]), vector)
    table |= {
        "torch.polygamma(1)": (lambda h: torch.polygamma(1, positive(h)), vector),
        "torch.special.ndtri": (lambda h: torch.special.ndtri(h.sigmoid()), vector),
        "torch.special.zeta": (lambda h: torch.special.zeta(torch.full_like(h, 2.5), positive(h)), vector),
        "torch.logit": (lambda h: torch.logit(h.sigmoid() * 0.9 + 0.05), vector),
        "torch.logsumexp": (lambda h: torch.logsumexp(h, 1, True), vector),
        "torch.prod": (lambda h: h.prod(1, keepdim=True), vector),
        "torch.std": (lambda h: h.std(1, keepdim=True), vector),
        "torch.var": (lambda h: h.var(1, keepdim=True), vector),
        "torch.amax": (lambda h: h.amax(1, keepdim=True), vector),
        "torch.median": (lambda h: h.median(1, keepdim=True), vector),
        "torch.sort": (lambda h: h.sort(1), vector),
        "torch.topk": (lambda h: h.topk(2, 1), vector),
        "torch.quantile": (lambda h: h.quantile(0.3, 1, True), vector),
        "torch.clamp": (lambda h: h.clamp(-0.3, 0.4), vector),
        "torch.where": (lambda h: torch.where(h > 0, h.exp(), h.sin()), vector),
        "torch.gather": (lambda h: h.sin().gather(1, torch.tensor([[3, 0]]).expand(len(h), 2)), vector),
        "torch.scatter_add": (
            lambda h: torch.zeros(len(h), 2).scatter_add(1, torch.tensor([[0, 1, 1, 0]]).expand(len(h), 4), h.exp()),
            vector,
        ),
        "torch.diff": (lambda h: h.square().diff(dim=1), vector),
        "torch.trapezoid": (lambda h: torch.trapezoid(h.exp(), dim=1)[:, None], vector),
        "torch.renorm": (lambda h: h.renorm(2, 0, 0.5), vector),
        "torch.fft.rfft": (lambda h: torch.view_as_real(torch.fft.rfft(h.sin())), vector),
        "torch.fft.fft, abs": (lambda h: torch.fft.fft(h).abs(), vector),
        "torch.polar": (lambda h: torch.view_as_real(torch.polar(positive(h), h)), vector),
        "torch.cdist": (lambda h: torch.cdist(h.reshape(-1, 2, 2), h.reshape(-1, 2, 2).flip(2)), vector),
        "torch.cdist(p=1)": (
            lambda h: torch.cdist(h.reshape(-1, 2, 2), h.reshape(-1, 2, 2).flip(2), p=1), vector,
        ),
        "torch.cdist(p=3)": (
            lambda h: torch.cdist(h.reshape(-1, 2, 2), h.reshape(-1, 2, 2).flip(2), p=3), vector,
        ),
        "torch.pdist": (lambda h: torch.stack([F.pdist(r) for r in h.reshape(-1, 2, 2)]), vector),
        "torch.vmap inside": (lambda h: torch.vmap(lambda r: r.sin().prod())(h)[:, None], vector),
        "checkpoint": (
            lambda h: torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=False), vector,
        ),
        "checkpoint(use_reentrant=True)": (
            lambda h: torch.utils.checkpoint.checkpoint(torch.tanh, h, use_reentrant=True), vector,
        ),
        "F.normalize": (F.normalize, vector),
        "F.cosine_similarity": (lambda h: F.cosine_similarity(h[:, :2], h[:, 2:])[:, None], vector),
        "F.gumbel_softmax": (F.gumbel_softmax, vector),
        "F.dropout": (lambda h: F.dropout(h), vector),
        "F.rrelu(training=True)": (lambda h: F.rrelu(h, training=True), vector),
        "detach()": (lambda h: h.sin().detach(), vector),
        "x / x.norm().detach()": (lambda h: h / h.norm(dim=1, keepdim=True).detach(), vector),
        "argmax": (lambda h: F.one_hot(h.argmax(1), 4), vector),
        "straight through": (lambda h: h + (h.round() - h).detach(), vector),
        "fake_quantize_per_tensor_affine": (
            lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127), vector,
        ),
        "torch._weight_norm": (lambda h: torch._weight_norm(h, h[:, :1].exp(), 0), vector),
        "F.scaled_dot_product_attention": (lambda h: F.scaled_dot_product_attention(h, h, h), square),
        "torch.linalg.inv": (lambda h: torch.linalg.inv(definite(h)), square),
        "torch.linalg.det": (lambda h: torch.linalg.det(h)[:, None], square),
        "torch.linalg.slogdet": (lambda h: torch.linalg.slogdet(definite(h))[1][:, None], square),
        "torch.linalg.solve": (lambda h: torch.linalg.solve(definite(h), h), square),
        "torch.linalg.solve_triangular": (
            lambda h: torch.linalg.solve_triangular(definite(h).tril(), h, upper=False), square,
        ),
        "torch.linalg.cholesky": (lambda h: torch.linalg.cholesky(definite(h)), square),
        "torch.cholesky_inverse": (
            lambda h: torch.cholesky_inverse(torch.linalg.cholesky(definite(h))), square,
        ),
        "torch.linalg.qr": (lambda h: torch.linalg.qr(h)[1].square(), square),
        "torch.linalg.svdvals": (torch.linalg.svdvals, square),
        "torch.linalg.svd": (lambda h: (lambda u, s, v: u @ s.sqrt().diag_embed() @ v)(*torch.linalg.svd(h)), square),
        "torch.linalg.eigvalsh": (lambda h: torch.linalg.eigvalsh(definite(h)), square),
        "torch.linalg.eigh": (lambda h: torch.linalg.eigh(definite(h))[1].square(), square),
        "torch.linalg.eigvals": (lambda h: torch.linalg.eigvals(definite(h)).real, square),
        "torch.linalg.lu": (lambda h: torch.linalg.lu(definite(h))[2], square),
        "torch.linalg.pinv": (torch.linalg.pinv, square),
        "torch.linalg.lstsq": (lambda h: torch.linalg.lstsq(definite(h), h)[0], square),
        "torch.linalg.matrix_exp": (torch.linalg.matrix_exp, square),
        "torch.linalg.matrix_power": (lambda h: torch.linalg.matrix_power(h, 3), square),
        "torch.linalg.matrix_norm(2)": (lambda h: torch.linalg.matrix_norm(h, 2)[:, None], square),
        "torch.linalg.matrix_norm('nuc')": (
            lambda h: torch.linalg.matrix_norm(h, "nuc")[:, None], square,
        ),
        "torch.linalg.vector_norm(1)": (lambda h: torch.linalg.vector_norm(h, 1, 1), square),
        "torch.linalg.vector_norm(3)": (lambda h: torch.linalg.vector_norm(h, 3, 1), square),
        "torch.linalg.vector_norm(inf)": (
            lambda h: torch.linalg.vector_norm(h, float("inf"), 1), square,
        ),
        "torch.linalg.householder_product": (
            lambda h: torch.linalg.householder_product(h, h[:, 0].tanh()), square,
        ),
        "torch.einsum": (lambda h: torch.einsum("nij,njk->nik", h, h.sin()), square),
        "torch.cov": (lambda h: torch.stack([torch.cov(r) for r in h]), square),
        "torch.corrcoef": (lambda h: torch.stack([torch.corrcoef(r) for r in h.cumsum(1)]), (2, 3)),
        "F.grid_sample": (
            lambda h: F.grid_sample(h[:, None], h.tanh()[:, :, None, :].repeat(1, 1, 2, 1), align_corners=True),
            square,
        ),
        "F.affine_grid": (lambda h: F.affine_grid(h, [len(h), 1, 2, 2], True).square(), (2, 3)),
        "F.interpolate(area)": (lambda h: F.interpolate(h.exp()[:, None], 1, mode="area"), square),
        "F.max_pool2d_with_indices": (
            lambda h: F.max_pool2d(h.exp()[:, None], 2, return_indices=True), square,
        ),
    }  # fmt: skip
    return table


# -- losses --------------------------------------------------------------------------------------


def _losses() -> dict[str, tuple[Callable[[Any, Tensor], Tensor], int, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    classes, ones = torch.arange(ROWS) % 3, torch.arange(ROWS) % 2
    real = torch.randn(ROWS, 3, generator=generator)
    chances = real.softmax(1)
    signs = torch.where(real > 0, 1.0, -1.0)
    bits = (real > 0).double()
    several = torch.tensor([[0, 2, -1]]).repeat(ROWS, 1)
    weight = torch.tensor([1.0, 3.0, 0.5])
    ignored = classes.clone()
    ignored[::3] = -100
    counts = torch.randint(0, 4, (ROWS, 3), generator=generator).double()
    table: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, Tensor]] = {
        "cross_entropy": (F.cross_entropy, 3, classes),
        "CrossEntropyLoss(weight)": (nn.CrossEntropyLoss(weight), 3, classes),
        "CrossEntropyLoss(label_smoothing)": (nn.CrossEntropyLoss(label_smoothing=0.1), 3, classes),
        "CrossEntropyLoss(weight, label_smoothing)": (
            nn.CrossEntropyLoss(weight, label_smoothing=0.1), 3, classes,
        ),
        "cross_entropy(ignored rows)": (F.cross_entropy, 3, ignored),
        "cross_entropy(probabilities)": (F.cross_entropy, 3, chances),
        "cross_entropy(of tokens)": (
            lambda h, t: F.cross_entropy(h.reshape(-1, 3, 2), t), 6, torch.stack([classes, ones], 1),
        ),
        "CrossEntropyLoss(sum)": (nn.CrossEntropyLoss(reduction="sum"), 3, classes),
        "nll_loss": (lambda h, t: F.nll_loss(h.log_softmax(1), t), 3, classes),
        "NLLLoss(weight)": (
            lambda h, t: F.nll_loss(h.log_softmax(1), t, weight), 3, classes,
        ),
        "binary_cross_entropy": (
            lambda h, t: F.binary_cross_entropy(h.sigmoid(), t), 3, bits,
        ),
        "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), 3, bits),
        "BCEWithLogitsLoss(pos_weight)": (nn.BCEWithLogitsLoss(pos_weight=weight), 3, bits),
        "BCEWithLogitsLoss(weight)": (nn.BCEWithLogitsLoss(weight), 3, bits),
        "kl_div": (
            lambda h, t: F.kl_div(h.log_softmax(1), t, reduction="batchmean"), 3, chances,
        ),
        "kl_div(log_target)": (
            lambda h, t: F.kl_div(h.log_softmax(1), t, log_target=True, reduction="batchmean"),
            3, chances.log(),
        ),
        "MSELoss": (nn.MSELoss(), 3, real),
        "MSELoss(sum)": (nn.MSELoss(reduction="sum"), 3, real),
        "L1Loss": (nn.L1Loss(), 3, real),
        "SmoothL1Loss": (nn.SmoothL1Loss(), 3, real),
        "SmoothL1Loss(beta=0.3)": (nn.SmoothL1Loss(beta=0.3), 3, real),
        "HuberLoss": (nn.HuberLoss(), 3, real),
        "HuberLoss(delta=0.3)": (nn.HuberLoss(delta=0.3), 3, real),
        "PoissonNLLLoss": (nn.PoissonNLLLoss(), 3, counts),
        "PoissonNLLLoss(full)": (nn.PoissonNLLLoss(full=True), 3, counts),
        "PoissonNLLLoss(log_input=False)": (
            lambda h, t: F.poisson_nll_loss(h.exp(), t, log_input=False), 3, counts,
        ),
        "gaussian_nll_loss": (
            lambda h, t: F.gaussian_nll_loss(h[:, :1], t, F.softplus(h[:, 1:])), 2, real[:, :1],
        ),
        "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss(), 3, signs),
        "SoftMarginLoss": (nn.SoftMarginLoss(), 3, signs),
        "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss(), 3, several),
        "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), 3, bits),
        "MultiMarginLoss": (nn.MultiMarginLoss(), 3, classes),
        "MultiMarginLoss(p=2)": (nn.MultiMarginLoss(p=2), 3, classes),
        "MultiMarginLoss(weight)": (nn.MultiMarginLoss(weight=weight), 3, classes),
        "margin_ranking_loss": (
            lambda h, t: F.margin_ranking_loss(h[:, 0], h[:, 1], t, 0.1), 2, signs[:, 0],
        ),
        "cosine_embedding_loss": (
            lambda h, t: F.cosine_embedding_loss(h[:, :2], h[:, 2:], t, 0.1), 4, signs[:, 0],
        ),
        "triplet_margin_loss": (
            lambda h, t: F.triplet_margin_loss(h[:, :2], h[:, 2:4], h[:, 4:]), 6, real[:, 0],
        ),
        "triplet_margin_loss(swap)": (
            lambda h, t: F.triplet_margin_loss(h[:, :2], h[:, 2:4], h[:, 4:], swap=True),
            6, real[:, 0],
        ),
        "triplet_margin_with_distance_loss": (
            lambda h, t: F.triplet_margin_with_distance_loss(
                h[:, :2], h[:, 2:4], h[:, 4:], distance_function=lambda a, b: 1 - F.cosine_similarity(a, b)
            ),
            6, real[:, 0],
        ),
        "ctc_loss": (
            lambda h, t: F.ctc_loss(
                h.reshape(len(h), 4, 3).log_softmax(-1).transpose(0, 1), t,
                torch.full((len(h),), 4), torch.full((len(h),), 2),
            ),
            12, torch.tensor([[1, 2]]).repeat(ROWS, 1),
        ),
        "AdaptiveLogSoftmaxWithLoss": (
            _adaptive(), 4, torch.arange(ROWS) % 6,
        ),
        "AdaptiveLogSoftmaxWithLoss, held": (
            _adaptive().requires_grad_(False), 4, torch.arange(ROWS) % 6,
        ),
        "focal": (
            lambda h, t: (lambda q: ((1 - q.exp()) ** 2 * -q).mean())(
                h.log_softmax(1).gather(1, t[:, None])
            ),
            3, classes,
        ),
        "log cosh": (lambda h, t: (h - t).cosh().log().mean(), 3, real),
        "quantile": (lambda h, t: torch.maximum(0.3 * (t - h), -0.7 * (t - h)).mean(), 3, real),
        "squared hinge": (lambda h, t: F.relu(1 - h * t).square().mean(), 3, signs),
        "Brier": (lambda h, t: (h.softmax(1) - t).square().sum(1).mean(), 3, chances),
        "contrastive (rows with rows)": (
            lambda h, t: (torch.logsumexp(F.normalize(h) @ F.normalize(h).T, 1) - (h * t).sum(1)).mean(),
            3, real,
        ),
    }  # fmt: skip
    return table


class _Adaptive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4])

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.inner(outputs, targets).loss
        return loss


def _adaptive() -> nn.Module:
    torch.manual_seed(0)
    return _Adaptive()
