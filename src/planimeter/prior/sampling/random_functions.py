r"""Functions of random networks, thousands at a time, from a stream that can be played again.

**Fully connected ReLU networks.** With :math:`W_l \sim N(0, \sigma_w^2/n_{l-1})` and
:math:`b_l \sim N(0, \sigma_b^2)`, write :math:`h_l = k_l \hat h_l`, where
:math:`k_l = k_{l-1}\, \sigma_w / \sqrt{n_{l-1}}`. ReLU is positively homogeneous, so

.. math:: \hat h_l = \mathrm{ReLU}(\Omega_l \hat h_{l-1} + (\sigma_b / k_l)\, \beta_l),

with :math:`\Omega` and :math:`\beta` of *standard* normals: no weight is scaled, and the sign of
the output is the network's. Biases cost no pass over the activations: with
:math:`m_l = \hat h_l + s_l`,

.. math:: m_l = \max(\Omega_l m_{l-1}, s_l), \qquad
          s_l = \Omega_l s_{l-1} + (\sigma_b / k_l)\, \beta_l, \qquad s_1 = 0

(:math:`\beta` and :math:`-\beta` have the same law), so a shift is a number a unit, not one a unit
and input. The first layer takes its bias as one more input. The function is
:math:`[\Omega_L m_{L-1} > s_L]`. The distribution is that of the normals (`normals.py`); rounding
in float32 decides outputs within about 1e-6 of 0, relative to the terms of their sum.

**Any other module** is evaluated by `torch.func.vmap` over stacked parameters.

Batch i of a stream has its own generator, seeded by (seed, i): batches can be drawn in any order,
by any number of threads, and again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from planimeter.errors import InputError
from planimeter.prior.kernels.initialisation import gaussian_deviations
from planimeter.prior.sampling.normals import normals, torch_seed
from planimeter.prior.sampling.packing import pack, pack_on_device

BATCH = 4096
"""Networks of one batch, and of one generator, on the CPU."""
DEVICE_BATCH = 1 << 16
"""The same on an accelerator, which is kept waiting by small ones."""
STREAM = 2
"""Version of the streams: counts on disk go on only with the networks that they began with."""
_NORMALS, _ACTIVATIONS = 1 << 20, 1 << 19
"""Bytes of normals drawn at a time, and of a layer's activations: what a core's cache holds."""
_DEVICE = 1 << 29
"""Bytes of either on an accelerator, which wants large blocks."""


@runtime_checkable
class Functions(Protocol):
    """A stream of functions. It has buffers, so every thread needs its own."""

    def batch(self, seed: int, index: int) -> NDArray[np.uint64]:
        """The functions of one batch, (`batch_size` of the device, words)."""
        ...


class FullyConnectedFunctions:
    """Functions of fully connected ReLU networks with one output.

    Arguments:
        x: (n, d) inputs, float32, on the device to use.
        hidden: widths of the hidden layers; none for a linear network.
        sigma_w, sigma_b: standard deviations of weights (times the root of fan-in) and biases.
    """

    def __init__(
        self, x: Float[Tensor, "n d"], hidden: Sequence[int], sigma_w: float, sigma_b: float
    ) -> None:
        n, d = x.shape
        widths = [*hidden, 1]
        parameters = sum((i + 1) * o for i, o in pairwise([d, *widths]))
        # Normals are drawn for many networks, whose activations are computed for some at a time.
        drawn = _block(parameters, x.device, _NORMALS)
        at_once = min(_block(n * max(widths), x.device, _ACTIVATIONS), drawn)
        self.pieces = [slice(i, i + at_once) for i in range(0, drawn, at_once)]
        self.normals = normals(drawn * parameters, x.device)
        scales = np.cumprod([sigma_w / math.sqrt(width) for width in (d, *hidden)])
        self.bias_scales = [float(sigma_b / scale) for scale in scales]
        constant = x.new_full((n, 1), self.bias_scales[0])
        self.x = torch.cat([x, constant], dim=1).T.contiguous()
        self.first = self.normals.values[: drawn * widths[0] * (d + 1)].view(drawn, -1, d + 1)
        self.later: list[tuple[Tensor, Tensor]] = []
        used = self.first.numel()
        for i, o in pairwise(widths):
            middle, end = used + drawn * o * i, used + drawn * o * (i + 1)
            weights = self.normals.values[used:middle].view(drawn, o, i)
            self.later.append((weights, self.normals.values[middle:end].view(drawn, o, 1)))
            used = end
        self.activations = [x.new_empty(at_once, width, n) for width in widths[:-1]]
        self.outputs = x.new_empty(drawn, 1, n)

    def batch(self, seed: int, index: int) -> NDArray[np.uint64]:
        """See `Functions`."""
        self.normals.restart(seed, index)
        times = batch_size(self.x.device) // len(self.outputs)
        return np.concatenate([self._drawn() for _ in range(times)])

    def _drawn(self) -> NDArray[np.uint64]:
        """Functions of as many networks as there are normals for."""
        self.normals.draw()
        shifts: list[Tensor] = []
        for (weights, biases), scale in zip(self.later, self.bias_scales[1:], strict=True):
            if shifts:
                shifts.append(torch.baddbmm(biases, weights, shifts[-1], beta=scale))
            else:
                shifts.append(biases * scale)
        for piece in self.pieces:
            self._evaluate(piece, shifts)
        threshold = shifts[-1] if shifts else 0.0
        return _packed((self.outputs > threshold).squeeze(1))

    def _evaluate(self, piece: slice, shifts: list[Tensor]) -> None:
        layers = [*self.activations, self.outputs[piece]]
        m = layers[0]
        torch.mm(self.first[piece].flatten(0, 1), self.x, out=m.view(-1, m.shape[-1]))
        for layer, (weights, _) in enumerate(self.later):
            if layer == 0:
                m.relu_()
            else:
                torch.maximum(m, shifts[layer - 1][piece], out=m)
            m = torch.bmm(weights[piece], m, out=layers[layer + 1])


class ModuleFunctions:
    """Functions of any module with one output, with Gaussian weights.

    Arguments:
        module: on the device to use; evaluated in eval mode, its normalisation layers and buffers
            as they are.
        x: (n, ...) inputs, on the same device.
        sigma_w, sigma_b: standard deviations of weights (times the root of fan-in) and biases.

    Raises:
        InputError: a parameter has no Gaussian initialisation, or there is not one output a row.
    """

    def __init__(
        self, module: nn.Module, x: Float[Tensor, "n ..."], sigma_w: float, sigma_b: float
    ) -> None:
        self.module, self.x = module, x
        self.deviations = gaussian_deviations(module, sigma_w, sigma_b)
        self.shapes = {
            name: p.shape for name, p in module.named_parameters() if name in self.deviations
        }
        self.generator = torch.Generator(x.device)
        with torch.no_grad():
            outputs = module(x[:2])
        if outputs.numel() != len(x[:2]):
            raise InputError(
                f"the network has outputs of shape {tuple(outputs.shape)} on {len(x[:2])} inputs; "
                f"a binary function needs one number an input"
            )
        size = _largest_activation(module, x[:2]) * len(x)
        self.networks = _block(size, x.device, _ACTIVATIONS)

    def batch(self, seed: int, index: int) -> NDArray[np.uint64]:
        """See `Functions`."""
        self.generator.manual_seed(torch_seed(seed, index))
        times = batch_size(self.x.device) // self.networks
        blocks = [self._block_of_functions() for _ in range(times)]
        return np.concatenate(blocks)

    def _block_of_functions(self) -> NDArray[np.uint64]:
        stacked = {
            name: torch.randn(
                self.networks, *shape, generator=self.generator, device=self.x.device,
                dtype=self.x.dtype,
            ).mul_(self.deviations[name])
            for name, shape in self.shapes.items()
        }  # fmt: skip

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.module, parameters, (self.x,)).reshape(-1)

        return _packed(vmap(outputs)(stacked) > 0)


def _packed(bits: Bool[Tensor, "k n"]) -> NDArray[np.uint64]:
    return pack(bits.numpy()) if bits.device.type == "cpu" else pack_on_device(bits)


def batch_size(device: torch.device | str) -> int:
    """Networks of one batch, and of one generator."""
    return BATCH if torch.device(device).type == "cpu" else DEVICE_BATCH


def _block(numbers: int, device: torch.device, cache: int) -> int:
    """Networks at a time, a power of two, when each takes so many numbers."""
    fitting = max((cache if device.type == "cpu" else _DEVICE) // (4 * numbers), 1)
    return int(min(1 << (fitting.bit_length() - 1), batch_size(device)))


def _largest_activation(module: nn.Module, x: Tensor) -> int:
    """Numbers an input in the largest output of a layer."""
    sizes = [x[0].numel()]
    hooks = [
        layer.register_forward_hook(
            lambda layer, arguments, output: (
                sizes.append(output.numel() // len(x)) if isinstance(output, Tensor) else None
            )
        )
        for layer in module.modules()
    ]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)
