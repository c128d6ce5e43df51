r"""Relative flatness: curvature of a layer relative to its weights.

For a layer with weights w, a row :math:`w_s` a neuron, and blocks :math:`H_{s,s'}` of the Hessian,

.. math:: \kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle \, \mathrm{tr}\, H_{s,s'}
          = E \, \langle R Z, H \, R Z \rangle, \qquad R R^T = w w^T,

with random signs Z of the layer's shape. The sum over layers probes all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.block_traces import block_traces, input_deviations, weight_names
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape
from planimeter.landscape.denominators import known_loss
from planimeter.losses import predicts_classes

Progress = Callable[[int, int], None]


def relative_flatness(
    landscape: LossLandscape,
    *,
    normalise_features: bool = False,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The sum of :math:`\kappa` over all layers.

    Arguments:
        normalise_features: every input feature of a layer divided by its standard deviation over
            the data, and the weights multiplied: invariant to neuron-wise rescalings as well.
        probes: products; from the number of weights on, the result is exact.
        seed: of the probes.

    Raises:
        NotApplicableError: no weight matrices, or features that cannot be normalised.

    Source: Petzka et al. 2021.
    """
    layers = relative_flatness_by_layer(
        landscape,
        normalise_features=normalise_features,
        probes=probes,
        seed=seed,
        progress=progress,
    )
    return layers["sum"]


def relative_flatness_by_layer(
    landscape: LossLandscape,
    *,
    normalise_features: bool = False,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Estimate]:
    """The same for every weight by its name, and under "sum" for all together."""
    names = weight_names(landscape)
    deviations = input_deviations(landscape, names) if normalise_features else {}
    hessian = landscape.hessian().restricted(names)
    factors: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name in names:
        w = landscape.parameters[name].double()
        scale = None
        if name in deviations:
            own = deviations[name].reshape(1, -1, *[1] * (w.ndim - 2))
            w = w * own
            inverse = torch.where(own > 0, 1 / own, torch.zeros_like(own))
            scale = inverse.expand(w.shape)[:1].reshape(1, -1)
        factors[name] = _root(w.flatten(1)), scale

    def along(v: Float[Tensor, "P k"], transposed: bool) -> Float[Tensor, "P k"]:
        """Every layer's part Z to R Z (or R^T Z), features scaled."""
        result = torch.empty_like(v)
        for name, part in hessian.blocks.items():
            root, scale = factors[name]
            z = v[part].T.reshape(v.shape[1], len(root), -1)
            if transposed and scale is not None:
                z = z * scale
            z = (root.T if transposed else root) @ z
            if not transposed and scale is not None:
                z = z * scale
            result[part] = z.reshape(v.shape[1], -1).T
        return result

    operator = replace(
        hessian,
        product=lambda v: along(hessian.product(along(v, False)), True),
        name="Hessian relative to the weights",
        restrict=None,
    )
    traces = block_traces(operator, probes=probes, seed=seed, progress=progress)
    method = traces.method() + (", features normalised" if normalise_features else "")
    results = {}
    for name, weights in zip(
        [*names, "sum"], [*torch.eye(len(names)).double(), torch.ones(len(names)).double()],
        strict=True,
    ):  # fmt: skip
        value, stderr = traces.combined(weights.to(traces.samples))
        results[name] = Estimate(
            value, stderr, method, traces.products, seed=None if traces.exact else seed
        )
    return results


def relative_flatness_of_softmax_layer(landscape: LossLandscape) -> Estimate:
    r"""The closed form for a last linear layer under the cross-entropy,

    .. math:: \frac1N \sum_n \|\phi_n\|^2 \Big[ \sum_c G_{cc} p_{nc} - p_n^T G p_n \Big],
              \qquad G = w w^T,

    with the layer's inputs :math:`\phi_n` and :math:`p_n = \mathrm{softmax}(h_n)`.

    Raises:
        NotApplicableError: the loss is no cross-entropy, or the last module is no linear layer
            whose outputs are the network's.

    Source: Petzka et al. 2021.
    """
    known = known_loss(landscape.loss_function)
    if not predicts_classes(landscape.loss_function) or known is None:
        raise NotApplicableError("the closed form is that of the cross-entropy of a softmax")
    if known.settings.get("weight") is not None and known.settings.get("label_smoothing"):
        raise NotApplicableError("the closed form knows class weights without label smoothing only")
    linear = [
        (name, module)
        for name, module in landscape.model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in landscape.parameters
    ]
    if not linear:
        raise NotApplicableError("the network has no linear layer with trainable weights")
    name, module = linear[-1]
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(
        lambda _, inputs, outputs: seen.append((inputs[0], outputs))
    )
    w = landscape.parameters[f"{name}.weight"].double()
    gram, total, counted = w @ w.T, 0.0, 0.0
    try:
        with torch.no_grad(), landscape.mode():
            for _, weight, (inputs, targets) in landscape.function.pieces():
                seen.clear()
                outputs = landscape.outputs(landscape.parameters, inputs)
                if len(seen) != 1 or not torch.equal(seen[0][1], outputs) or outputs.ndim != 2:
                    raise NotApplicableError(f"the outputs of {name!r} are not the network's")
                p = outputs.double().softmax(1)
                bend = p @ gram.diagonal() - ((p @ gram) * p).sum(1)
                if targets.is_floating_point() and known.settings.get("weight") is not None:
                    raise NotApplicableError(
                        "the closed form knows class weights with classes as targets only"
                    )
                bend = bend * known.row_weights(targets)
                total += float((seen[0][0].double().square().sum(1) * bend).sum())
                counted += weight
    finally:
        handle.remove()
    return Estimate(total / counted, 0.0, f"closed form of layer {name!r}")


def _root(w: Float[Tensor, "d m"]) -> Float[Tensor, "d d"]:
    """R with w w' = R R'; triangular, so that neurons' factors go into its rows as they are."""
    triangle = torch.linalg.qr(w.T, mode="r").R
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).to(w)
    root = w.new_zeros(len(w), len(w))
    root[:, : len(triangle)] = (signs[:, None] * triangle).T
    return root


def _softmax_layer(landscape: LossLandscape, **_: object) -> Estimate:
    return relative_flatness_of_softmax_layer(landscape)


MEASURES = (
    Measure(
        "relative_flatness",
        "relative flatness",
        "κ",
        "Σ_l Σ_{s,s'} <w_s, w_s'> tr H_{s,s'}",
        "Petzka et al. 2021",
        "sharpness",
        frozenset({"layer"}),
        relative_flatness,
        relative_flatness,
        {"probes": 8},
        by_layer=True,
    ),
    Measure(
        "relative_flatness_normalised",
        "relative flatness, features normalised",
        "κ'",
        "the same with every input feature divided by its deviation",
        "Petzka et al. 2021",
        "sharpness",
        frozenset({"layer", "neuron"}),
        partial(relative_flatness, normalise_features=True),
        relative_flatness,
        {"probes": 8},
        by_layer=True,
    ),
    Measure(
        "relative_flatness_softmax_layer",
        "relative flatness of the softmax layer",
        "κ_last",
        "1/N Σ_n ‖φ_n‖² (Σ_c G_cc p_nc - p_n'G p_n), G = ww'",
        "Petzka et al. 2021",
        "sharpness",
        frozenset({"layer"}),
        _softmax_layer,
        relative_flatness_of_softmax_layer,
    ),
)
