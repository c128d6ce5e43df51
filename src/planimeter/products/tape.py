r"""A linear function of tensors as the list of tensor operations that compute it.

Differentiating a loss twice repeats, for every vector, work that depends on the parameters and the
data alone. A tape runs the function once, notes which operations touch the vector, keeps the values
that those need, and afterwards repeats only them. For a Hessian-vector product by forward over
reverse differentiation this leaves, for every matrix product of the gradient, the two that its
derivative has: the least that an exact product can cost.

>>> import torch
>>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
>>> tape = record(lambda v: [matrix @ v + 0 * v], [torch.ones(2)])
>>> tape([torch.tensor([1.0, 0.0])])
[tensor([2., 1.])]
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from planimeter.products.replay import Replay

aten = torch.ops.aten

# Their results depend on the shape of the argument, not on its values.
_ZEROS = {aten.zeros_like.default, aten.new_zeros.default}

_COPIES = {
    aten._to_copy.default, aten.alias.default, aten.clone.default, aten.detach.default,
}  # fmt: skip

# Of zeros these make zeros: with any factor, and with the first argument.
_PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mul.Tensor}
_LINEAR = {
    aten.alias.default, aten.clone.default, aten.detach.default, aten._to_copy.default,
    aten.t.default, aten.transpose.int, aten.permute.default, aten.expand.default,
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.neg.default, aten.sum.dim_IntList, aten.threshold_backward.default,
}  # fmt: skip

_VIEWS = {aten.view.default, aten._unsafe_view.default}
_SHAPE_ONLY = {aten.is_same_size.default, aten._has_same_storage_numel.default}
# Bytes from which the system gives empty pages instead of memory that has to be cleared.
_PAGES = 2**16


class TapeError(Exception):
    """A function cannot be recorded, so another way to compute it is to be used."""


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor that depends on the input of the tape."""

    index: int

    def __repr__(self) -> str:
        return f"s{self.index}"


@dataclass(frozen=True)
class _Step:
    """One operation: its flat arguments are slots or constants; results without a slot are None."""

    call: Any
    arguments: list[Any]
    layout: TreeSpec
    results: list[_Slot | None]
    one_result: bool
    mutates: bool

    def slots(self) -> list[_Slot]:
        return [a for a in self.arguments if isinstance(a, _Slot)]


class Tape:
    """Repeats the recorded operations on new tensors of the same shapes.

    Arguments:
        steps: the operations in order.
        fused: the same with matrix products and sums joined; these are run.
        inputs, outputs: slots, or for outputs that do not depend on the inputs the tensors.
    """

    def __init__(
        self,
        steps: list[_Step],
        fused: list[_Step],
        inputs: list[_Slot],
        outputs: list[_Slot | Tensor],
    ) -> None:
        self._plain = (steps, inputs, outputs)
        kept = [c for step in steps for c in step.arguments if isinstance(c, Tensor)]
        self.constants = kept + [o for o in outputs if isinstance(o, Tensor)]
        self.run: Callable[..., list[Tensor]] = _compiled(fused, inputs, outputs)
        self.has_convolutions = any("convolution" in str(step.call) for step in steps)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The function's value at `tensors`; no graph is recorded."""
        with torch.inference_mode():
            return self.run(*tensors)

    def batched(self, examples: Sequence[Tensor]) -> Tape:
        """The same function of k tensors each, stacked along a new first dimension.

        Raises:
            TapeError: as for `record`, or an operation has no rule for stacked tensors.
        """
        plain = _compiled(*self._plain)
        try:
            return record(torch.vmap(lambda *tensors: plain(*tensors)), examples)
        except RuntimeError as error:
            raise TapeError(str(error)) from error

    def compile(self) -> None:
        """Have torch.compile translate the steps; the first call after pays for it."""
        self.run = torch.compile(self.run, dynamic=False)

    def capture(self, examples: Sequence[Tensor], pool: Any) -> None:
        """Have the steps launched as one CUDA graph; see `Replay`."""
        self.run = Replay(self.run, examples, pool)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors."""
    storages = {_storage(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def record(
    function: Callable[..., list[Tensor]], examples: Sequence[Tensor], *, program: bool = False
) -> Tape:
    """Run `function(*examples)` once and keep what it did with them.

    What the function computes from other tensors is kept as its value: a tape holds as long as
    those tensors do not change.

    Arguments:
        function: of the tensors alone, as far as the tape is to hold for others.
        examples: tensors, which are copied.
        program: for examples that are whole batches: they are not copied, and what writes into
            them is refused, and so is an operation whose results have a shape that depends on
            values.

    Raises:
        TapeError: an operation writes what depends on the inputs into a tensor that does not, or
            a Python number was taken from a tensor that depends on the inputs, or what `program`
            refuses.
    """
    examples = [e.detach() if program else e.detach().clone() for e in examples]
    with torch.no_grad(), _Recorder(examples, program) as recorder:
        results = function(*examples)
    recorder.check_kept()
    outputs = [recorder.slots.get(result, result) for result in results]
    inputs = [recorder.slots[e] for e in examples]
    return Tape(*_simplified(recorder, inputs, outputs))


class RealZeros(TorchDispatchMode):
    """Zeros have storage inside: torch writes into those without, as for mse_loss, and fails."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        zeros = func is aten._efficientzerotensor.default
        return (_untouched_zeros if zeros else func)(*args, **(kwargs or {}))


def _untouched_zeros(size: Sequence[int], **kind: Any) -> Tensor:
    """Zeros that take no memory on the CPU until they are written to: empty pages."""
    dtype = kind.get("dtype") or torch.get_default_dtype()
    length = math.prod(size) * dtype.itemsize
    if length < _PAGES or torch.device(kind.get("device") or "cpu").type != "cpu":
        return torch.zeros(size, **kind)
    return torch.from_numpy(np.zeros(length, np.uint8)).view(dtype).view(size)


class _Recorder(TorchDispatchMode):
    def __init__(self, examples: Sequence[Tensor], program: bool) -> None:
        super().__init__()
        self.program = program
        self.untouchable = {_storage(e) for e in examples} if program else set()
        self.slots: Any = WeakIdKeyDictionary()
        self.steps: list[_Step] = []
        # Where steps use constants: storage to (step, argument, version of the tensor then).
        self.kept: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.shapes: dict[_Slot, torch.Size] = {}
        self.layouts: dict[_Slot, tuple[Any, ...]] = {}
        self.storages: dict[_Slot, tuple[int, int]] = {}
        self.owners: Counter[int] = Counter()
        self.mutated: set[tuple[int, int]] = set()
        for example in examples:
            self._slot(example)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._efficientzerotensor.default:
            # Zeros without storage send a dispatch mode into endless recursion.
            return _untouched_zeros(*args, **kwargs)
        flat, layout = tree_flatten((args, kwargs))
        slots = [self.slots.get(a) if isinstance(a, Tensor) else None for a in flat]
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and isinstance(value, Tensor)
        ]
        if not any(slots):
            for tensor in written:
                self._save_from_writing(tensor)
            return func(*args, **kwargs)
        if any(_storage(w) in self.untouchable for w in written):
            raise TapeError(f"{func} writes into an input")
        if any(w not in self.slots for w in written):
            raise TapeError(f"{func} writes into a tensor that does not depend on the input")
        if func in _SHAPE_ONLY:
            return func(*args, **kwargs)  # not a step: nothing has to be kept for it
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            raise TapeError("a number was taken from a tensor that depends on the input")
        if self.program and _has_a_shape_of_values(func, flat):
            raise TapeError(f"the result of {func} has a shape that depends on values")
        out = func(*args, **kwargs)
        self.mutated |= {self.storages[self.slots[w]] for w in written}
        known = {_storage(a) for a in flat if isinstance(a, Tensor)}
        arguments = [slot or value for slot, value in zip(slots, flat, strict=True)]
        for place, constant in enumerate(arguments):
            if isinstance(constant, Tensor):
                where = (len(self.steps), place, constant._version)
                self.kept[_storage(constant)].append(where)
        results, _ = tree_flatten(out)
        self.steps.append(
            _Step(
                func,
                arguments,
                layout,
                [self._slot(r, known) if isinstance(r, Tensor) else None for r in results],
                isinstance(out, Tensor),
                bool(written),
            )
        )
        return out

    def _save_from_writing(self, tensor: Tensor) -> None:
        """Copies of the constants that are about to be overwritten take their places."""
        copies: dict[int, Tensor] = {}
        for step, place, _ in self.kept.pop(_storage(tensor), []):
            arguments = self.steps[step].arguments
            constant = arguments[place]
            arguments[place] = copies.setdefault(id(constant), constant.clone())

    def check_kept(self) -> None:
        """Refuse a tape whose constants were changed behind the recorder's back."""
        for places in self.kept.values():
            for step, place, version in places:
                if self.steps[step].arguments[place]._version != version:
                    raise TapeError("a value that the tape needs was changed in place")

    def _slot(self, tensor: Tensor, known: Collection[int] = ()) -> _Slot:
        """The slot of a tensor; `known` are the addresses of what it may be a view of."""
        slot: _Slot | None = self.slots.get(tensor)
        if slot is None:
            slot = self.slots[tensor] = _Slot(len(self.shapes))
            self.shapes[slot] = tensor.shape
            self.layouts[slot] = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            # An address is given out again once its tensor is gone: count its owners.
            address = _storage(tensor)
            if address not in known:
                self.owners[address] += 1
            self.storages[slot] = (address, self.owners[address])
        return slot


def _has_a_shape_of_values(func: Any, arguments: list[Any]) -> bool:
    """Whether a result's shape is not known from the shapes of the arguments."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    masks = (torch.bool, torch.uint8)
    return func is not aten.index.Tensor or any(
        isinstance(a, Tensor) and a.dtype in masks for a in arguments[1:]
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _simplified(
    recorder: _Recorder, inputs: list[_Slot], outputs: list[_Slot | Tensor]
) -> tuple[list[_Step], list[_Step], list[_Slot], list[_Slot | Tensor]]:
    """Without sums with zeros, copies that copy nothing and steps that nobody needs."""
    same: dict[_Slot, _Slot] = {}
    zeros: set[_Slot] = set()
    transposed: dict[_Slot, _Slot] = {}
    smaller: set[_Slot] = set()
    steps: list[_Step] = []

    def resolved(value: Any) -> Any:
        return same.get(value, value) if isinstance(value, _Slot) else value

    def untouched(*slots: _Slot) -> bool:
        return not any(recorder.storages[s] in recorder.mutated for s in slots)

    def is_zero(value: Any) -> bool:
        if isinstance(value, _Slot):
            return value in zeros
        return isinstance(value, Tensor) and not bool(value.any())

    def is_zero_of(step: _Step) -> bool:
        if step.call in _PRODUCTS:
            return any(is_zero(factor) for factor in step.arguments[:2])
        if step.call is aten.convolution.default:
            return step.arguments[2] is None and any(map(is_zero, step.arguments[:2]))
        return step.call in _LINEAR and is_zero(step.arguments[0])

    for raw in recorder.steps:
        step = replace(raw, arguments=[resolved(a) for a in raw.arguments])
        first, result = step.arguments[0], step.results[0] if step.results else None
        if result is None or not isinstance(first, _Slot | Tensor):
            steps.append(step)
            continue
        if untouched(result) and (step.call in _ZEROS or is_zero_of(step)):
            zeros.add(result)
        stands_for: _Slot | None = None
        if step.call is aten.add.Tensor and len(step.arguments) == 2:
            for one, other in (step.arguments, step.arguments[::-1]):
                if isinstance(one, _Slot) and is_zero(other):
                    stands_for = one
        elif step.call in _COPIES:
            stands_for = first if isinstance(first, _Slot) else None
        elif step.call is aten.t.default and isinstance(first, _Slot):
            stands_for = transposed.get(first)
            transposed[result] = first
        if stands_for is None or not untouched(stands_for, result):
            steps.append(step)
        elif stands_for not in smaller and recorder.layouts[stands_for] == recorder.layouts[result]:
            same[result] = stands_for
        elif (
            step.call is aten.add.Tensor
            and result not in outputs
            and _broadcasts_later(result, recorder, smaller)
        ):
            same[result] = stands_for
            smaller.add(result)
        else:
            steps.append(step)
    outputs = [resolved(o) for o in outputs]
    steps = _shared(_reshaped(_needed(steps, outputs), recorder))
    return steps, _fused(_rewritten(steps), recorder, outputs), inputs, outputs


def _broadcasts_later(slot: _Slot, recorder: _Recorder, smaller: set[_Slot]) -> bool:
    """Whether a tensor is only added to tensors of its own shape, so that it may be smaller.

    Two that are smaller would have nothing to broadcast to: `smaller` are those that already are.
    """
    users = [step for step in recorder.steps if slot in step.slots()]
    return bool(users) and all(
        user.call is aten.add.Tensor
        and len(user.arguments) == 2
        and any(
            isinstance(other, _Slot)
            and other != slot
            and other not in smaller
            and recorder.shapes[other] == recorder.shapes[slot]
            for other in user.arguments
        )
        for user in users
    )


def _needed(steps: list[_Step], outputs: list[_Slot | Tensor]) -> list[_Step]:
    """The steps that the outputs depend on, and all that write in place."""
    needed = {o for o in outputs if isinstance(o, _Slot)}
    kept = []
    for step in reversed(steps):
        if step.mutates or needed.intersection(r for r in step.results if r):
            needed.update(step.slots())
            kept.append(step)
    return kept[::-1]


def _reshaped(steps: list[_Step], recorder: _Recorder) -> list[_Step]:
    """Views become reshapes: steps in another form may give other strides than the recorded."""
    result = []
    for step in steps:
        made = step.results[0] if step.results else None
        if step.call in _VIEWS and made and recorder.storages[made] not in recorder.mutated:
            step = replace(step, call=torch.reshape)
        result.append(step)
    return result


def _shared(steps: list[_Step]) -> list[_Step]:
    """One tensor in place of equal ones, as layer normalisation and attention keep many."""
    known: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    shared: dict[int, Tensor] = {}

    def one_of(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return value
        if id(value) not in shared:
            layout = value.shape, value.stride(), value.dtype, value.device
            alike = known[(*layout, float(value.sum()))] if value.numel() else [value]
            same = (a for a in alike if torch.equal(a, value))
            shared[id(value)] = next(same, value)
            if shared[id(value)] is value:
                alike.append(value)
        return shared[id(value)]

    return [replace(step, arguments=[one_of(a) for a in step.arguments]) for step in steps]


def _rewritten(steps: list[_Step]) -> list[_Step]:
    """One large matrix product in place of k with the same constant factor."""
    result = []
    for step in steps:
        if step.call is aten.bmm.default:
            left, right = step.arguments
            if isinstance(left, Tensor) and left.stride(0) == 0:
                step = replace(step, call=_constant_times_stack, arguments=[left[0], right])
            elif isinstance(right, Tensor) and right.stride(0) == 0:
                step = replace(step, call=_stack_times_constant, arguments=[left, right[0]])
        result.append(step)
    return result


def _constant_times_stack(constant: Tensor, stack: Tensor) -> Tensor:
    """(n, m) times each of (k, m, p); the k results share one matrix product."""
    k, m, p = stack.shape
    rows = stack.transpose(1, 2)
    if not rows.is_contiguous() and k * constant.numel() < stack.numel():
        return torch.bmm(constant.expand(k, *constant.shape), stack)
    rows = rows.reshape(k * p, m)
    return (rows @ constant.t()).view(k, p, len(constant)).transpose(1, 2)


def _stack_times_constant(stack: Tensor, constant: Tensor) -> Tensor:
    """Each of (k, n, m) times (m, p); the k results share one matrix product."""
    k, n, m = stack.shape
    if not stack.is_contiguous() and k * constant.numel() < stack.numel():
        return torch.bmm(stack, constant.expand(k, *constant.shape))
    return (stack.reshape(k * n, m) @ constant).view(k, n, constant.shape[1])


def _fused(steps: list[_Step], recorder: _Recorder, outputs: list[_Slot | Tensor]) -> list[_Step]:
    """A matrix product that is only added to something becomes one addmm (or baddbmm)."""
    fusions = {aten.mm.default: aten.addmm.default, aten.bmm.default: aten.baddbmm.default}
    uses = Counter(slot for step in steps for slot in step.slots())
    uses.update(o for o in outputs if isinstance(o, _Slot))
    made = {r: i for i, step in enumerate(steps) for r in step.results if r}
    gone: set[int] = set()
    steps = list(steps)

    def _dtype(value: _Slot | Tensor) -> torch.dtype:
        dtype: torch.dtype = recorder.layouts[value][2] if isinstance(value, _Slot) else value.dtype
        return dtype

    for i, step in enumerate(steps):
        if step.call is not aten.add.Tensor or len(step.arguments) != 2:
            continue
        for product, other in (step.arguments, step.arguments[::-1]):
            where = made.get(product) if isinstance(product, _Slot) else None
            if where is None or uses[product] != 1 or steps[where].call not in fusions:
                continue
            result = step.results[0]
            if (
                not result
                or recorder.shapes[product] != recorder.shapes[result]
                or not isinstance(other, _Slot | Tensor)
                or len({recorder.layouts[result][2], _dtype(product), _dtype(other)}) > 1
                # The product moves to where the sum is: its factors have to be the same there.
                or any(recorder.storages[f] in recorder.mutated for f in steps[where].slots())
            ):
                continue
            factors = steps[where].arguments
            call, arguments = fusions[steps[where].call], [other, *factors]
            _, layout = tree_flatten((tuple(arguments), {}))
            steps[i] = replace(step, call=call, arguments=arguments, layout=layout)
            gone.add(where)
            break
    return [step for i, step in enumerate(steps) if i not in gone]


def _compiled(
    steps: list[_Step], inputs: list[_Slot], outputs: list[_Slot | Tensor]
) -> Callable[..., list[Tensor]]:
    """A Python function of the inputs; every tensor is let go after its last use."""
    names: dict[str, Any] = {}

    def named(value: Any) -> _Name:
        if isinstance(value, _Slot):
            return _Name(repr(value))
        name = f"c{len(names)}"
        names[name] = value
        return _Name(name)

    last = {slot: i for i, step in enumerate(steps) for slot in step.slots()}
    lines = [f"def run({', '.join(map(repr, inputs))}):"]
    for i, step in enumerate(steps):
        call = named(step.call)
        args, kwargs = tree_unflatten([named(a) for a in step.arguments], step.layout)
        words = [repr(a) for a in args] + [f"{key}={value!r}" for key, value in kwargs.items()]
        left = ", ".join(repr(r) if r else "_" for r in step.results) or "_"
        if not step.one_result and step.results:
            left = f"({left},)"
        lines.append(f"    {left} = {call!r}({', '.join(words)})")
        done = {s for s in step.slots() if last[s] == i and s not in outputs}
        done |= {r for r in step.results if r and r not in last and r not in outputs}
        if done:
            lines.append(f"    del {', '.join(sorted(map(repr, done)))}")
    lines.append(f"    return [{', '.join(repr(named(o)) for o in outputs)}]")
    exec("\n".join(lines), names)
    run: Callable[..., list[Tensor]] = names["run"]
    return run


@dataclass(frozen=True)
class _Name:
    """A variable of the generated function."""

    text: str

    def __repr__(self) -> str:
        return self.text
