"""Which modules have a landscape: what is refused, in words, before anything runs."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from planimeter.errors import InputError, MeasurementWarning
from planimeter.network.modes import is_compiled


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, where it comes inside `DataParallel`, `DistributedDataParallel` or as
    the result of `torch.compile`, which have its parameters and compute the same."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif is_compiled(model) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def check_module(model: nn.Module) -> None:
    """Refuse what cannot be differentiated, or not as a function of real numbers.

    Raises:
        InputError: the model is scripted, quantised, on the meta device or not yet initialised; a
            parameter is complex; or none requires a gradient.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got a {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"the module {name!r}" if name else "the model"
            raise InputError(
                f"{what} is scripted (torch.jit), which has no reliable second derivatives: pass "
                f"the module that it was made from; weights of one load into the other by "
                f"load_state_dict"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise InputError(
                f"{name!r} has no shape yet (a lazy module): run the model once on some rows"
            )
        if tensor.is_meta:
            raise InputError(
                f"{name!r} is on the meta device and has no values: load weights into the model "
                f"(model.to_empty(device=...), then load_state_dict)"
            )
    for name, parameter in model.named_parameters():
        if parameter.is_complex() and parameter.requires_grad:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise InputError(
                f"parameter {name!r} is complex ({kind}); a landscape is a function of real "
                f"numbers: keep its real and imaginary parts as a real parameter "
                f"(torch.view_as_real) and make the complex one in forward (torch.view_as_complex)"
            )
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "no parameter of the model requires a gradient: nothing to measure" + _why(model)
        )


def _why(model: nn.Module) -> str:
    """Why there is none, where that can be seen."""
    quantised = next((n for n, m in model.named_modules() if "quantized" in type(m).__module__), "")
    if quantised:
        return f" ({quantised!r} is quantised: measure the network before quantisation)"
    if any(p.is_floating_point() for p in model.parameters()):
        return " (they are frozen: use requires_grad_(True))"
    return ""


def warn_of_long_rows(model: nn.Module) -> None:
    """Warn of embeddings with rows longer than their `max_norm`, which running would shorten.

    A landscape leaves weights where they are, so the bound is off in it: rows within it give what
    the model gives, longer ones do not.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or module.max_norm is None:
            continue
        weight, bound = module.weight.detach(), float(module.max_norm)
        slack = 1 + 10 * torch.finfo(weight.dtype).eps
        long = int((weight.norm(module.norm_type, dim=1) > slack * bound).sum())
        if long:
            warnings.warn(
                f"{long} rows of the embedding {name!r} are longer than its max_norm {bound:g}; "
                f"the module shortens its own weights when it runs, and here they are measured as "
                f"they are. For what the model computes, shorten them first: with "
                f"torch.no_grad(): weight.copy_(torch.renorm(weight, {module.norm_type:g}, 0, "
                f"{bound:g}))",
                MeasurementWarning,
                stacklevel=4,
            )
