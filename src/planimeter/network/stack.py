r"""Several networks of one architecture as one computation.

The parameters of B networks are stacked, :math:`W_l` of shape (B, out, in), so that the layers of
all of them are one batched matrix product. With inputs :math:`X_b` (rows are inputs), weights
:math:`w_{bn}` of the rows and :math:`H_0 = X^T`, a chain of linear layers and ReLUs has, for every
network b at once,

.. math:: Z_l = W_l H_{l-1} + b_l, \qquad H_l = \max(Z_l, 0), \qquad
          \Delta_L = w\, \partial \ell / \partial Z_L,

.. math:: \nabla W_l = \Delta_l H_{l-1}^T, \qquad \nabla b_l = \Delta_l 1, \qquad
          \Delta_{l-1} = (W_l^T \Delta_l) \odot 1[H_{l-1} > 0],

which is written out here because small networks spend most of their time between operations, not
in them. Every other module goes through `torch.func.vmap`. The result of a network is, on CPUs, the
same to the last bit whichever others are in its stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.losses import RowLoss
from planimeter.network.modes import batch_norms, has_dropout

_ROWS_IN_REGISTERS = 32  # float32, two registers of 64 bytes at a time

Stacked = list[Tensor]
"""One tensor a parameter, each with the networks along its first dimension."""


@runtime_checkable
class Stack(Protocol):
    """B networks; which B is said by the tensors that are passed in."""

    names: list[str]
    """Of the parameters, in the order of the lists of tensors."""
    loss: RowLoss

    def outputs(
        self, parameters: Stacked, fixed: Stacked, inputs: Float[Tensor, "B n ..."]
    ) -> Float[Tensor, "B n c"]:
        """Outputs of every network on its own inputs."""
        ...

    def gradient(
        self,
        parameters: Stacked,
        fixed: Stacked,
        inputs: Float[Tensor, "B n ..."],
        targets: Shaped[Tensor, "B n"],
        weights: Float[Tensor, "B n"],
        out: Stacked,
    ) -> Float[Tensor, "B n c"]:
        r"""Write the gradients of :math:`\sum_n w_{bn} \ell(h_b(x_{bn}), y_{bn})`; the outputs."""
        ...


def stack_of(
    model: nn.Module, loss: RowLoss, names: Sequence[str], row: Sequence[int] | torch.Size
) -> Stack:
    """The fastest stack for networks like `model`.

    Arguments:
        model: one of them; its own parameters play no role.
        loss: of a row.
        names: of the parameters that are differentiated by; all other tensors of the state, in
            the order of `other_names`, are `fixed`.
        row: shape of one input.
    """
    layers = _chain(model, names, flat=len(row) == 1)
    if layers is not None:
        return ChainStack(layers, list(names), loss)
    return MappedStack(model, list(names), other_names(model, names), loss)


def other_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Parameters and buffers of a model that are not among the names."""
    state = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    return [name for name in state if name not in names]


def padded_rows(rows: int) -> int:
    """The rows to compute for so many that count, the others with weight zero.

    Exponentials of what does not fill the vector registers at the end of a tensor are rounded in
    another way: in whole registers, a network's place in the stack makes no difference.
    """
    return -(-rows // _ROWS_IN_REGISTERS) * _ROWS_IN_REGISTERS


def check_alike(models: Sequence[nn.Module]) -> None:
    """Refuse networks that cannot be stacked.

    Raises:
        InputError: there are none; they differ in architecture; or BatchNorm or dropout in
            training mode would mix rows or draw random numbers.
    """
    if not models:
        raise InputError("an ensemble needs at least one network")
    shapes = [{n: (p.shape, p.dtype) for n, p in m.state_dict().items()} for m in models]
    for index, model in enumerate(models):
        if repr(model) != repr(models[0]) or shapes[index] != shapes[0]:
            raise InputError(
                f"the networks of an ensemble must have one architecture: number {index} is "
                f"another than number 0"
            )
    if any(norm.training for norm in batch_norms(models[0])):
        raise InputError("networks with BatchNorm are trained one by one: it mixes rows")
    if models[0].training and has_dropout(models[0]):
        raise InputError("networks with dropout are trained one by one: it draws random numbers")


def stacked(states: Sequence[dict[str, Tensor]], names: Sequence[str]) -> Stacked:
    """Copies of the named tensors of several states, stacked."""
    return [torch.stack([state[name].detach() for state in states]) for name in names]


@dataclass(frozen=True)
class _Layer:
    """A linear layer: indices of its tensors, and whether a ReLU follows."""

    weight: int
    bias: int | None
    relu: bool


class ChainStack:
    """Chains of linear layers and ReLUs, with the derivative written out."""

    def __init__(self, layers: list[_Layer], names: list[str], loss: RowLoss) -> None:
        self.layers, self.names, self.loss = layers, names, loss

    def outputs(
        self, parameters: Stacked, fixed: Stacked, inputs: Float[Tensor, "B n ..."]
    ) -> Float[Tensor, "B n c"]:
        """Outputs of every network on its own inputs."""
        return self._hidden(parameters, inputs.flatten(2))[-1].mT

    def gradient(
        self,
        parameters: Stacked,
        fixed: Stacked,
        inputs: Float[Tensor, "B n ..."],
        targets: Shaped[Tensor, "B n"],
        weights: Float[Tensor, "B n"],
        out: Stacked,
    ) -> Float[Tensor, "B n c"]:
        r"""Write the gradients of :math:`\sum_n w_{bn} \ell(h_b(x_{bn}), y_{bn})`; the outputs."""
        inputs = inputs.flatten(2)
        hidden = self._hidden(parameters, inputs)
        slope = (self.loss.slopes(hidden[-1].mT, targets) * weights[..., None]).mT
        for index in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[index]
            if layer.relu:
                slope = torch.ops.aten.threshold_backward(slope, hidden[index], 0)
            below = hidden[index - 1].mT if index else inputs
            torch.bmm(slope, below, out=out[layer.weight])
            if layer.bias is not None:
                torch.sum(slope, 2, out=out[layer.bias])
            if index:
                slope = torch.bmm(parameters[layer.weight].mT, slope)
        return hidden[-1].mT

    def _hidden(self, parameters: Stacked, inputs: Float[Tensor, "B n d"]) -> list[Tensor]:
        """(B, width, n) values of every layer, after its ReLU."""
        hidden: list[Tensor] = []
        below = inputs.mT
        for layer in self.layers:
            below = torch.bmm(parameters[layer.weight], below)
            if layer.bias is not None:
                below += parameters[layer.bias][..., None]
            if layer.relu:
                below.relu_()
            hidden.append(below)
        return hidden


class MappedStack:
    """Any module, by `torch.func.vmap` over its state."""

    def __init__(
        self, model: nn.Module, names: list[str], others: list[str], loss: RowLoss
    ) -> None:
        self.model, self.names, self.others, self.loss = model, names, others, loss
        self._outputs = torch.vmap(self.network)
        self._gradient = torch.vmap(torch.func.grad(self._loss, has_aux=True))

    def outputs(
        self, parameters: Stacked, fixed: Stacked, inputs: Float[Tensor, "B n ..."]
    ) -> Float[Tensor, "B n c"]:
        """Outputs of every network on its own inputs."""
        with torch.no_grad():
            return self._outputs(parameters, fixed, inputs)

    def gradient(
        self,
        parameters: Stacked,
        fixed: Stacked,
        inputs: Float[Tensor, "B n ..."],
        targets: Shaped[Tensor, "B n"],
        weights: Float[Tensor, "B n"],
        out: Stacked,
    ) -> Float[Tensor, "B n c"]:
        r"""Write the gradients of :math:`\sum_n w_{bn} \ell(h_b(x_{bn}), y_{bn})`; the outputs."""
        found, outputs = self._gradient(parameters, fixed, inputs, targets, weights)
        torch._foreach_copy_(out, found)
        return outputs

    def _loss(
        self, parameters: Stacked, fixed: Stacked, inputs: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = self.network(parameters, fixed, inputs)
        return (weights * self.loss.values(outputs, targets)).sum(), outputs

    def network(self, parameters: Stacked, fixed: Stacked, inputs: Tensor) -> Tensor:
        """Outputs of one network, (n, c)."""
        state = dict(zip(self.names, parameters, strict=True))
        state |= dict(zip(self.others, fixed, strict=True))
        outputs: Any = torch.func.functional_call(self.model, state, (inputs,))
        if not isinstance(outputs, Tensor):
            raise InputError(
                f"the networks of an ensemble return a tensor, not a {type(outputs).__name__}"
            )
        return outputs[:, None] if outputs.ndim == 1 else outputs


def _chain(model: nn.Module, names: Sequence[str], flat: bool) -> list[_Layer] | None:
    """The layers of a chain of linear layers and ReLUs whose parameters are all named, or None.

    Inputs that are not flat have to be flattened first.
    """
    modules = _in_order(model)
    if modules is None:
        return None
    where = {name: index for index, name in enumerate(names)}
    layers: list[_Layer] = []
    used: set[int] = set()
    for name, module in modules:
        if type(module) is nn.Linear and flat:
            weight = where.get(f"{name}weight")
            bias = where.get(f"{name}bias")
            if weight is None or (bias is None) != (module.bias is None):
                return None
            layers.append(_Layer(weight, bias, relu=False))
            used |= {weight} if bias is None else {weight, bias}
        elif type(module) is nn.ReLU and layers:
            layers[-1] = _Layer(layers[-1].weight, layers[-1].bias, relu=True)
        elif type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            flat = True
        elif type(module) is not nn.Identity:
            return None
    return layers if layers and used == set(range(len(names))) else None


def _in_order(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]] | None:
    """The modules of nested `nn.Sequential`s with the prefixes of their parameters' names."""
    if any(
        getattr(model, hooks)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "parametrizations")
        if hasattr(model, hooks)
    ):
        return None
    if type(model) is not nn.Sequential:
        return [(prefix, model)]
    found: list[tuple[str, nn.Module]] = []
    for name, child in model._modules.items():  # named_children() leaves out repeated ones
        assert child is not None
        below = _in_order(child, f"{prefix}{name}.")
        if below is None:
            return None
        found += below
    return found
