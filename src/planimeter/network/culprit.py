"""Which module or operation gives a derivative that differences contradict, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from planimeter.machine.memory import is_out_of_memory
from planimeter.products.batches import BatchedLoss, Parameters
from planimeter.products.witness import FAILURES, Sample, Samples, sample_of

Doubt = Callable[[Samples], bool]
"""Whether derivatives of a function, given by samples of it, are wrong."""


def culprit(model: nn.Module, sample: Sample, is_wrong: Doubt) -> str:
    """The innermost module whose derivatives are wrong by themselves, and the operation in it.

    Arguments:
        model: whose modules `sample.function` runs.
        sample: few rows of a landscape.
        is_wrong: what is asked of each module and operation alone.
    """
    found: list[str] = []

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if found or busy:
            return
        busy.append(True)
        try:
            named: Parameters = {
                name: p for name, p in module.named_parameters() if p.is_floating_point()
            }

            def run(parameters: Parameters, *a: Any, **k: Any) -> Any:
                return torch.func.functional_call(module, parameters, a, k)

            if _alone(run, args, kwargs, named, is_wrong):
                inner = _operations(run, (named, *args), kwargs, is_wrong)
                found.append(_words(names[module], type(module).__name__, inner))
        finally:
            busy.pop()

    busy: list[bool] = []
    names = {module: name for name, module in model.named_modules()}
    hooks = [module.register_forward_hook(leave, with_kwargs=True) for module in names]
    try:
        with sample.inside():
            outputs = sample.function.forward(sample.parameters, sample.batch[0])
            if found:
                return found[0]
            busy.append(True)

            def loss(_: Parameters, h: Any) -> Any:
                return sample.function.loss(h, sample.batch[1])

            if _alone(loss, (outputs,), {}, {}, is_wrong):
                inner = _operations(loss, ({}, outputs), {}, is_wrong)
                return "the loss" + (f" (in {inner})" if inner else "")
    finally:
        for hook in hooks:
            hook.remove()
    return "the model"


def _alone(
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    named: Parameters,
    is_wrong: Doubt,
) -> bool:
    """Whether run(named, *args, **kwargs) has wrong derivatives by any floating tensor of these."""
    leaves, layout = tree_flatten((args, kwargs))
    places = {
        f"argument {i}": i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()
    }
    variables = {**named, **{name: leaves[i] for name, i in places.items()}}
    variables = {name: v.detach().clone() for name, v in variables.items() if v.numel()}
    if not variables:
        return False

    def forward(values: Parameters, _: Any) -> Any:
        given = list(leaves)
        for name, i in places.items():
            given[i] = values[name]
        # A module may write into what it is given.
        given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in given]
        a, k = tree_unflatten(given, layout)
        return run({name: values[name] for name in named}, *a, **k)

    def summed(outputs: Any, _: Tensor) -> Tensor:
        """A number that bends with every output, so that slopes coming back do too."""
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros((), dtype=torch.float64)
        for i, h in enumerate(tree_leaves(outputs)):
            if isinstance(h, Tensor) and h.is_floating_point() and h.numel():
                w = torch.randn(h.shape, generator=generator, dtype=torch.float64).to(h)
                size = sizes.setdefault(i, float(h.detach().double().square().mean().sqrt()) or 1)
                total = total + (w * (h + h * h / (2 * size))).sum()
        return total

    sizes: dict[int, float] = {}
    nothing = torch.zeros(1)
    function = BatchedLoss(forward, summed, lambda: iter([(nothing, nothing)]), separable=False)
    try:
        return is_wrong(lambda seed: sample_of(function, variables, (nothing, nothing), seed))
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return False


def _operations(
    run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_wrong: Doubt
) -> str:
    """The first operation inside whose derivatives are wrong, or autograd functions of the user."""
    watch = _Operations(is_wrong)
    a, k = tree_map(_as_leaf, (args, kwargs))
    with torch.enable_grad(), watch:
        result = run(*a, **k)
    if watch.found:
        return f"the operation {watch.found!r}"
    return ", ".join(f"the autograd function {name!r}" for name in sorted(_custom(result)))


def _as_leaf(one: Any) -> Any:
    """A floating tensor with a graph, of its own memory: a module may write into it."""
    is_floating = isinstance(one, Tensor) and one.is_floating_point()
    return one.detach().requires_grad_().clone() if is_floating else one


class _Operations(TorchFunctionMode):
    def __init__(self, is_wrong: Doubt) -> None:
        super().__init__()
        self.is_wrong, self.found, self.busy = is_wrong, "", False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        changes = name.endswith("_") and not name.startswith("__")
        if self.found or self.busy or changes or not isinstance(result, Tensor):
            return result
        if name in ("__get__", "requires_grad_") or not result.is_floating_point():
            return result
        self.busy = True
        try:
            if _alone(lambda _, *a, **k: func(*a, **k), args, kwargs, {}, self.is_wrong):
                self.found = name
        finally:
            self.busy = False
        return result


def _custom(result: Any) -> set[str]:
    """Names of the user's autograd functions in the graph of a result."""
    todo = [leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    seen: set[Any] = set()
    names: set[str] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names.add(type(node).__name__.removesuffix("Backward"))
        todo += [following for following, _ in node.next_functions]
    return names


def _words(path: str, kind: str, inner: str) -> str:
    place = f"{path!r} ({kind})" if path else f"the model ({kind})"
    return f"{inner} in {place}" if inner else place
