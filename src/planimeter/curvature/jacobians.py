r"""Per-row derivatives of cotangents by the parameters, layer by layer.

For cotangents :math:`r_{nc}` of the outputs, row (n, c) of the matrix is
:math:`J_n^T r_{nc}`. A linear layer with inputs :math:`a_n` and output derivatives
:math:`g_{nc}` contributes the block :math:`g_{nc} a_n^T`, whose inner products
:math:`(g_{nc} \cdot g_{md})(a_n \cdot a_m)` need no such block; a convolution contributes the
product with its unfolded inputs (factors too, where it has a single place to be). All other
parameters are differentiated row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.landscape.convexity import refuse_negative
from planimeter.network.returned import refuse_outputs_apart
from planimeter.products.batches import Batch, Inputs, Parameters, as_leaves, cut_rows, mean_loss
from planimeter.products.curvatures import loss_curvature

ROWS = 64
"""Rows that are differentiated one by one at a time."""


@dataclass
class RowFactors:
    """The derivatives of one batch: factors for linear layers, explicit blocks for the rest.

    Arguments:
        factors: weight name to inputs (n, in) and output derivatives (n, c, out).
        blocks: parameter name to derivatives (n, c, p).
    """

    factors: dict[str, tuple[Float[Tensor, "n i"], Float[Tensor, "n c o"]]] = field(
        default_factory=dict
    )
    blocks: dict[str, Float[Tensor, "n c p"]] = field(default_factory=dict)


def row_pieces(landscape: LossLandscape, rows: int = 256) -> list[tuple[float, Batch]]:
    """The data in pieces whose per-row derivatives are small, with what each of them counts.

    Raises:
        InputError: rows have no derivatives of their own.
    """
    if not landscape.function.separable:
        raise InputError(
            "rows have no derivatives of their own when BatchNorm uses the batch's statistics "
            "(use batch_norm='eval'), or where the loss is no mean over rows"
        )
    inputs, targets = landscape.first_rows(2)
    with torch.no_grad(), landscape.mode():
        outputs = landscape.outputs(landscape.parameters, inputs)
    refuse_outputs_apart(outputs, targets, "derivatives of single rows")
    function = replace(landscape.function)
    function.rows = min(rows, function.rows or rows)
    pieces = [(weight, batch) for _, weight, batch in function.pieces()]
    whole = landscape.loss()
    parts = mean_loss(function, landscape.parameters)
    slack = min(0.1, 100 * torch.finfo(landscape.dtype).eps)
    if abs(whole - parts) > slack * max(abs(whole), abs(parts)):
        raise InputError(
            f"the loss is no mean over rows: {whole:.6g} on all rows, {parts:.6g} from pieces of "
            f"{rows} put together, so single rows have no share in it: use the Lanczos methods"
        )
    return pieces


def curvature_roots(
    landscape: LossLandscape, batch: Batch, weight: float | None = None
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n c d"]]:
    r"""Outputs of a batch, and for each row the root of its output curvature.

    Row n of a mean with weights w has the Hessian :math:`w_n \Lambda_n / \sum w`;
    :math:`\sum_c r_{nc} r_{nc}^T = w_n \Lambda_n`. There are as many columns as the largest rank
    needs: C - 1 for the softmax.

    Arguments:
        weight: of the batch; None for asking.

    Raises:
        NotApplicableError: a row's curvature is negative in some direction, by more than rounding.
    """
    inputs, targets = batch
    with torch.no_grad(), landscape.mode():
        outputs = landscape.outputs(landscape.parameters, inputs)
    weight = landscape.function.weight(batch) if weight is None else weight
    with landscape.mode():
        try:
            # In float32 the softmax of a row that is fitted well has no null vector: 1 - p cancels.
            curvature = weight * _output_curvature(landscape, outputs.double(), targets)
        except RuntimeError:  # a loss that computes in its own dtype
            curvature = weight * _output_curvature(landscape, outputs, targets).double()
    values, vectors = torch.linalg.eigh((curvature + curvature.transpose(1, 2)) / 2)
    top = float(values.abs().max())
    precision = torch.finfo(landscape.dtype).eps
    refuse_negative(landscape.function, values / weight, outputs, targets)
    # Relative to each row: rows that are fitted well have a small curvature, not a small rank.
    floor = 100 * torch.finfo(torch.float64).eps * top
    relevant = values > (10 * precision * values.amax(dim=1, keepdim=True)).clamp_min(floor)
    rank = max(1, int(relevant.sum(1).max()))
    roots = (vectors * values.clamp_min(0).sqrt()[:, None, :])[:, :, -rank:]
    return outputs, roots.transpose(1, 2).to(landscape.dtype)


def row_derivatives(
    landscape: LossLandscape,
    batch: Batch,
    roots: Float[Tensor, "n c d"],
    generic: frozenset[str] = frozenset(),
) -> RowFactors:
    """The derivatives of one batch for cotangents `roots`.

    The layers' formulas are trusted only where their sum over rows, each with a random weight, is
    autograd's derivative of the same sum. Shared weights, layers that are not called as such and
    layers that see the rows in another order fail that, and are differentiated row by row, as are
    the parameters in `generic`.
    """
    result = RowFactors()
    n, c = roots.shape[:2]
    leaves = as_leaves(landscape.parameters)
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(n, c, 1, generator=generator).to(roots)
    with torch.enable_grad(), landscape.mode(), watched(landscape.model, _has_formula) as calls:
        outputs = landscape.outputs(leaves, batch[0]).reshape(n, -1)
        sites = {
            path: call[0]
            for path, call in calls.items()
            if len(call) == 1
            and call[0][1].requires_grad
            and len(call[0][0]) == len(call[0][1]) == n
        }
        taps = [output for _, output in sites.values()]
        slopes = [
            torch.autograd.grad(
                (outputs * roots[:, j]).sum(), taps, retain_graph=True, materialize_grads=True
            )
            for j in range(c)
            if taps
        ]
        mixed = torch.autograd.grad(
            (outputs * (mixture * roots).sum(1)).sum(),
            list(leaves.values()),
            materialize_grads=True,
        )
    names = {id(p): name for name, p in landscape.model.named_parameters()}
    modules = dict(landscape.model.named_modules())
    for place, (path, (inputs, _)) in enumerate(sites.items()):
        g = torch.stack([slope[place].detach() for slope in slopes], dim=1)
        _layer(result, modules[path], names, landscape.parameters, inputs, g)
    for name, expected in zip(leaves, mixed, strict=True):
        if name in generic or not _adds_up(result, name, mixture, expected):
            result.factors.pop(name, None)
            result.blocks.pop(name, None)
    rest = [name for name in leaves if name not in result.factors and name not in result.blocks]
    if rest:
        result.blocks |= _row_by_row(landscape, batch, roots, rest)
    return result


def _output_curvature(
    landscape: LossLandscape, outputs: Tensor, targets: Tensor
) -> Float[Tensor, "n c c"]:
    """The Hessian of the loss of a batch by the outputs of every row."""
    flat = outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]
    columns = []
    for j in range(flat.shape[1]):
        direction = torch.zeros_like(flat)
        direction[:, j] = 1
        curved = loss_curvature(
            landscape.function, outputs, targets, direction.reshape(outputs.shape)
        )
        columns.append(curved.reshape(flat.shape))
    return torch.stack(columns, dim=2)


def _layer(
    result: RowFactors,
    module: nn.Module,
    names: dict[int, str],
    parameters: Parameters,
    inputs: Tensor,
    g: Float[Tensor, "n c ..."],
) -> None:
    """The derivatives by one layer's weight and bias."""
    weight = names.get(id(module.weight))
    bias = names.get(id(module.bias)) if module.bias is not None else None
    n, c = g.shape[:2]
    if isinstance(module, nn.Linear):
        if bias in parameters:
            result.blocks[str(bias)] = g.reshape(n, c, -1, g.shape[-1]).sum(2)
        if weight in parameters and inputs.ndim == 2:
            result.factors[str(weight)] = (inputs, g)
        elif weight in parameters:
            a = inputs.reshape(n, -1, inputs.shape[-1])
            own = torch.einsum("ncto,nti->ncoi", g.reshape(n, c, a.shape[1], -1), a)
            result.blocks[str(weight)] = own.flatten(2)
    elif isinstance(module, nn.Conv2d):
        if bias in parameters:
            result.blocks[str(bias)] = g.flatten(3).sum(3)
        if weight in parameters:
            assert not isinstance(module.padding, str)
            patches = nn.functional.unfold(
                inputs,
                module.kernel_size,
                module.dilation,
                module.padding,
                module.stride,
            )
            if patches.shape[2] == 1:  # a linear layer in all but name
                result.factors[str(weight)] = (patches[:, :, 0], g.flatten(2))
            else:
                own = torch.einsum("ncot,nit->ncoi", g.flatten(3), patches)
                result.blocks[str(weight)] = own.flatten(2)


def _adds_up(
    result: RowFactors, name: str, mixture: Float[Tensor, "n c 1"], expected: Tensor
) -> bool:
    """Whether the weighted sum of the derivatives is autograd's."""
    if name in result.factors:
        inputs, g = result.factors[name]
        total = ((mixture * g).sum(1).T @ inputs).reshape(-1)
    elif name in result.blocks:
        total = (mixture * result.blocks[name]).sum((0, 1))
    else:
        return False
    expected = expected.detach().reshape(-1)
    slack = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.norm())
    return total.shape == expected.shape and float((total - expected).norm()) <= slack


def _row_by_row(
    landscape: LossLandscape, batch: Batch, roots: Float[Tensor, "n c d"], names: list[str]
) -> dict[str, Float[Tensor, "n c p"]]:
    """The derivatives by the named parameters, by vectorising over rows."""
    chosen = {name: landscape.parameters[name] for name in names}
    held = {n: p for n, p in landscape.parameters.items() if n not in chosen}

    def one(row: Inputs, cotangents: Float[Tensor, "c d"]) -> dict[str, Tensor]:
        def outputs(p: Parameters) -> Tensor:
            single = _map(row, lambda t: t[None])
            return landscape.outputs({**held, **p}, single).reshape(-1)

        _, pull = torch.func.vjp(outputs, chosen)
        derivatives: dict[str, Tensor] = torch.vmap(pull)(cotangents)[0]
        return {name: d.reshape(len(d), -1) for name, d in derivatives.items()}

    inputs, targets = batch
    parts = []
    with landscape.mode():
        for start in range(0, len(targets), ROWS):
            part = slice(start, start + ROWS)
            rows = cut_rows(inputs, part, len(targets))
            try:
                parts.append(torch.vmap(one)(rows, roots[part]))
            except RuntimeError:  # an operation without a rule for stacked rows
                parts.append(_one_by_one(landscape, rows, roots[part], chosen))
    return {name: torch.cat([p[name].detach() for p in parts]) for name in names}


def _one_by_one(
    landscape: LossLandscape, inputs: Inputs, roots: Float[Tensor, "n c d"], chosen: Parameters
) -> dict[str, Float[Tensor, "n c p"]]:
    """The derivatives of rows in turn, for models that cannot be vectorised."""
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    leaves = as_leaves(chosen)
    with torch.enable_grad():
        for i, cotangents in enumerate(roots):
            row = cut_rows(inputs, slice(i, i + 1), len(roots))
            outputs = landscape.outputs({**landscape.parameters, **leaves}, row).reshape(-1)
            each = [
                torch.autograd.grad(
                    outputs, list(leaves.values()), r, retain_graph=True, materialize_grads=True
                )
                for r in cotangents
            ]
            for name, parts in zip(chosen, zip(*each, strict=True), strict=True):
                found[name].append(torch.stack([p.reshape(-1) for p in parts]))
    return {name: torch.stack(parts) for name, parts in found.items()}


@contextmanager
def watched(
    model: nn.Module, chosen: Callable[[nn.Module], bool]
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of every call of the chosen modules inside."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        calls.setdefault(path, []).append((inputs.detach(), output))

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if chosen(module):
                hook = module.register_forward_hook(partial(note, path), with_kwargs=True)
                stack.callback(hook.remove)
        yield calls


def _has_formula(module: nn.Module) -> bool:
    """Whether the derivative by a layer's weight has a formula here."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _map(inputs: Inputs, change: Any) -> Any:
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: _map(value, change) for key, value in inputs.items()}
    return tuple(_map(value, change) for value in inputs)
