"""What a model returns, what of it the loss is given, and which tensor its outputs are.

Mostly a model returns one tensor: its outputs, which the loss takes. An object or dict with
`logits` stands for those, unless the loss takes the whole too and has another value there (an
auxiliary loss beside the logits). Any other tuple, list, dict or object goes to the loss as it is.
Where there is one tensor in it, that is the outputs, and the loss sees it in its place; where there
are several, the loss, its gradient and its Hessian are defined, and what is about *the* outputs
(Gauss-Newton and Fisher matrices, margins, accuracy) is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from planimeter.errors import InputError, NotApplicableError
from planimeter.losses import Loss


@dataclass(frozen=True)
class Reading:
    """How what a model returns is read.

    Arguments:
        whole: the loss is given all of it, also where there are logits in it.
        leaves, layout: of a structure with one tensor, which is replaced by None; layout None for
            no such structure.
    """

    whole: bool = False
    leaves: tuple[Any, ...] = ()
    layout: TreeSpec | None = None

    def given(self, result: Any) -> Any:
        """What is passed on as outputs: the one tensor, or a structure of several."""
        if isinstance(result, Tensor):
            return result
        if self.layout is not None:
            return next(leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor))
        if self.whole:
            return result
        logits = _logits(result)
        return result if logits is None else logits

    def loss(self, loss: Loss) -> Loss:
        """The loss of what is passed on."""
        if self.layout is None:
            return loss
        layout, leaves = self.layout, self.leaves

        def of_structure(outputs: Tensor, targets: Tensor) -> Tensor:
            filled = [outputs if leaf is None else leaf[0] for leaf in leaves]
            return loss(tree_unflatten(filled, layout), targets)

        return of_structure


def reading_of(result: Any, loss: Callable[[Any], Any]) -> Reading:
    """How to read what a model returned on some rows.

    Arguments:
        result: of the model.
        loss: what is passed on to its value on these rows; may raise.

    Raises:
        InputError: the loss takes neither the logits nor the whole, or there is no tensor at all.
    """
    if isinstance(result, Tensor):
        return Reading()
    if _logits(result) is not None:
        of_logits, of_whole = (_tried(loss, given) for given in (_logits(result), result))
        # Where the loss takes neither, it is explained where it is checked, on the logits.
        if of_whole is None or (of_logits is not None and _alike(of_logits, of_whole)):
            return Reading()
    try:
        loss(result)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"the model returned {described(result)}, which the loss is given as it is and does "
            f"not take ({type(error).__name__}: {lines[0]}): pass a loss that picks what it "
            f"needs, as in lambda outputs, targets: cross_entropy({_pick(result)}, targets)"
        ) from error
    flat, layout = tree_flatten(result)
    if sum(isinstance(leaf, Tensor) for leaf in flat) == 1:
        leaves = tuple(None if isinstance(leaf, Tensor) else (leaf,) for leaf in flat)
        return Reading(whole=True, leaves=leaves, layout=layout)
    return Reading(whole=True)


def one_tensor(outputs: Any) -> Tensor:
    """The outputs, where they are one tensor.

    Raises:
        NotApplicableError: they are a structure of several.
    """
    if isinstance(outputs, Tensor):
        return outputs
    raise NotApplicableError(
        f"the model returns {described(outputs)}, so which tensor its outputs are is not said; "
        f"the loss, its gradient and its Hessian need none: for this, measure a module that "
        f"returns one tensor"
    )


def refuse_outputs_apart(outputs: Tensor, targets: Tensor, what: str) -> None:
    """Refuse outputs of another length than the targets where every row's own are needed.

    Raises:
        NotApplicableError: they are (a token each, or two halves one under the other).
    """
    if not outputs.ndim or len(outputs) != len(targets):
        raise NotApplicableError(
            f"the outputs have shape {tuple(outputs.shape)} for {len(targets)} rows of targets, so "
            f"which of them are a row's is not said; loss, gradient and Hessian need not know: for "
            f"the {what}, let the model return outputs of shape (rows, ...)"
        )


def refuse_complex(outputs: Tensor, what: str) -> Tensor:
    """The outputs; complex ones are refused where real ones are needed.

    Raises:
        NotApplicableError: they are complex.
    """
    if outputs.is_complex():
        kind = str(outputs.dtype).removeprefix("torch.")
        raise NotApplicableError(
            f"the outputs are complex ({kind}), and the {what} is that of real ones: let the model "
            f"return their real and imaginary parts (torch.view_as_real)"
        )
    return outputs


def refuse_complex_loss(value: Any) -> None:
    """Refuse a loss that is no real number.

    Raises:
        InputError: it is complex.
    """
    if isinstance(value, Tensor) and value.is_complex():
        raise InputError(
            f"the loss is complex ({str(value.dtype).removeprefix('torch.')}); it has to be a "
            f"real number: take .abs() or .real of what it is made of"
        )


def described(result: Any) -> str:
    """Outputs in words: the shape of a tensor, or a structure's kind and the shapes in it."""
    if isinstance(result, Tensor):
        return str(tuple(result.shape))
    flat = tree_flatten(_open(result))[0]
    shapes = [tuple(leaf.shape) for leaf in flat if isinstance(leaf, Tensor)]
    shown = ", ".join(map(str, shapes[:4])) + (" and more" if len(shapes) > 4 else "")
    holds = f"with tensors of shapes {shown}" if shapes else "without a tensor"
    return f"a {type(result).__name__} {holds}"


def tensors_of(result: Any) -> list[Tensor]:
    """The tensors in what a model returned, those in an object's attributes included."""
    return [leaf for leaf in tree_flatten(_open(result))[0] if isinstance(leaf, Tensor)]


def _open(result: Any) -> Any:
    """An object as the dict of its attributes."""
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, Tensor | tuple | list) or not hasattr(result, "__dict__"):
        return result
    return vars(result)


def _tried(loss: Callable[[Any], Any], given: Any) -> Any:
    """The value of a loss, or None where it does not take what it is given."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loss(given)
    except Exception:  # whatever a user's own code raises
        return None


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of a loss, or two pairs (sum, count), are the same numbers."""
    pairs = zip(tree_flatten(one)[0], tree_flatten(other)[0], strict=False)
    return all(bool(torch.equal(torch.as_tensor(a), torch.as_tensor(b))) for a, b in pairs)


def _logits(result: Any) -> Tensor | None:
    of_dict = isinstance(result, Mapping)
    found = result.get("logits") if of_dict else getattr(result, "logits", None)
    return found if isinstance(found, Tensor) else None


def _pick(result: Any) -> str:
    if isinstance(result, Mapping):
        return f"outputs[{next(iter(result), 'logits')!r}]"
    if isinstance(result, tuple | list):
        return "outputs[0]"
    return "outputs." + next(iter(_open(result)), "logits") if hasattr(result, "__dict__") else "…"
