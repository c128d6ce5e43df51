from pathlib import Path

import pytest
import torch
from torch import nn

from planimeter.network import evaluation_mode
from planimeter.products.tape import TapeError, _untouched_zeros, record, tensor_bytes

F = nn.functional


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x + F.relu(self.first(x), inplace=True)
        h = F.pad(h[:, 1:], (1, 2))[:, :4] * h.sigmoid()
        return self.second(torch.cat([h[:, :2], h[:, 2:].flip(1)], dim=1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.read = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.read(self.cell(x)[0][:, -1])


def images():
    return torch.randn(5, 2, 6, 6).double()


def rows():
    return torch.randn(5, 4).double()


def sequences():
    return torch.randn(3, 5, 4).double()


NETS = {
    "linear, tanh, dropout": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(), nn.Linear(5, 3)),
        rows,
    ),
    "convolution, batch norm, pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(27, 3),
        ),
        images,
    ),
    "layer norm, gelu": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        rows,
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.SiLU(), nn.Linear(12, 3)),
        lambda: torch.randint(0, 7, (5, 3)),
    ),
    "attention": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(20, 3)
        ),
        sequences,
    ),
    "residual, slices, padding": (Residual, rows),
    "recurrent": (Recurrent, sequences),
}


def hessian_product(net, inputs):
    """v -> H v by forward over reverse, and the parameters, of a loss that bends everywhere."""
    parameters = {n: p.detach() for n, p in net.named_parameters()}

    def loss(p):
        return torch.func.functional_call(net, p, (inputs,)).cosh().log().mean()

    def product(*directions):
        along = dict(zip(parameters, directions, strict=True))
        return list(torch.func.jvp(torch.func.grad(loss), (parameters,), (along,))[1].values())

    return product, list(parameters.values())


@pytest.mark.parametrize("name", NETS)
def test_a_tape_is_the_recorded_function_at_other_inputs(name):
    torch.manual_seed(0)
    make, sample = NETS[name]
    net = make().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    product, parameters = hessian_product(net, sample())
    with evaluation_mode(net):
        tape = record(product, [torch.randn_like(p) for p in parameters])
        for _ in range(2):
            v = [torch.randn_like(p) for p in parameters]
            torch.testing.assert_close(tape(v), product(*v))
        k = 3
        stacked = [torch.randn(k, *p.shape).double() for p in parameters]
        together = tape.batched(stacked)([2 * s for s in stacked])
        for i in range(k):
            single = product(*(2 * s[i] for s in stacked))
            torch.testing.assert_close([t[i] for t in together], single)


def same(function, *examples):
    """The tape of a function, recorded at zeros and ones, gives the function's value elsewhere."""
    for recorded in (torch.zeros_like, torch.ones_like):
        tape = record(function, [recorded(e) for e in examples])
        torch.testing.assert_close(tape(examples), function(*examples))


def matrices(count, *shape):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_sums_with_zeros_keep_their_shapes():
    x, y = matrices(2, 3)
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    same(lambda x, y: [(x + zeros) + (y + zeros)], x, y)
    same(lambda x, y: [((x + zeros) + (y + zeros)).sum()], x, y)
    same(lambda x, y: [((x + zeros) + y * torch.ones_like(zeros)).sum()], x, y)

    def output_too(x, y):
        wide = x + zeros
        return [wide, wide + y * torch.ones_like(zeros)]

    same(output_too, x, y)


def test_matrix_products_join_sums_only_where_nothing_changes():
    a, b, matrix = matrices(3, 4, 4)

    def overwritten(a, b):
        a = 2 * a
        product = a @ matrix
        a.add_(1.0)
        return [product + b, a]

    same(overwritten, a, b)
    same(lambda a, b: [a @ matrix + b, b + matrix @ a], a, b)
    same(lambda a, b: [a @ matrix + b[0]], a, b)
    same(lambda a, b: [(a.float() @ matrix.float()) + b], a, b)
    same(lambda a, b: [(lambda p: p + b + p)(a @ b)], a, b)


def test_equal_constants_are_kept_once():
    matrix = torch.randn(50, 50)

    def function(v):
        return [matrix.exp() @ v + matrix.exp() * v + matrix.exp().t() @ v]

    tape = record(function, [torch.ones(50)])
    v = torch.randn(50)
    torch.testing.assert_close(tape([v]), function(v))
    assert tensor_bytes(tape.constants) == 2 * matrix.nbytes  # one of them transposed


def test_functions_that_write_in_place():
    a, b = matrices(2, 4, 4)

    def into_views(a, b):
        out = torch.zeros_like(a)
        out[:2] = b[:2]
        out[2:].copy_(a[2:])
        kept = out.clone()
        out.mul_(2).t().add_(a)
        return [kept, out]

    same(into_views, a, b)


def test_constants_overwritten_after_use_are_saved():
    (x,) = matrices(1, 3)

    def function(x):
        workspace = torch.arange(3, dtype=torch.float64)
        first = x * workspace
        view = workspace[1:]
        second = x[1:] * view
        workspace.fill_(7.0)
        return [first, second, x * workspace]

    same(function, x)


def test_outputs_that_do_not_depend_on_the_input():
    tape = record(lambda x: [x * 0 + 1, torch.ones(2)], [torch.zeros(3)])
    assert torch.equal(tape([torch.randn(3)])[1], torch.ones(2))
    assert tensor_bytes([torch.ones(4), torch.ones(4)[:2]]) == 32


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: [x * float(x.sum())], "a number was taken"),
        (lambda x: [x if bool((x > 0).all()) else -x], "a number was taken"),
        (lambda x: [x if torch.equal(x, x.abs()) else -x], "a number was taken"),
        (lambda x: [torch.zeros(3).copy_(x)], "writes into a tensor"),
        (lambda x: [torch.zeros(5)[1:4].add_(x)], "writes into a tensor"),
    ],
)
def test_what_a_tape_cannot_hold_is_refused(function, message):
    with pytest.raises(TapeError, match=message):
        record(function, [torch.ones(3)])


def test_a_constant_changed_behind_the_recorder_is_refused():
    workspace = torch.ones(3)

    def function(x):
        result = x * workspace
        torch.mul(workspace, 2.0, out=workspace)
        return [result]

    with pytest.raises(TapeError, match="changed in place"):
        record(function, [torch.ones(3)])


def test_a_function_without_a_rule_for_stacks_has_no_batched_tape():
    tape = record(lambda x: [x.masked_select(x > 0)], [torch.ones(3)])
    with pytest.raises(TapeError):
        tape.batched([torch.ones(2, 3)])


def test_a_program_refuses_what_writes_into_an_input_before_it_does():
    x = torch.ones(3)
    with pytest.raises(TapeError, match="writes into an input"):
        record(lambda a: [a.add_(1)], [x], program=True)
    assert torch.equal(x, torch.ones(3))
    (found,) = record(lambda a: [(a + 1).mul_(2)], [x], program=True)([torch.zeros(3)])
    assert torch.equal(found, torch.full((3,), 2.0))


@pytest.mark.parametrize("size", [(), (0, 3), (5,), (70, 300, 4)])
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_untouched_zeros_are_zeros(size, dtype):
    found, expected = _untouched_zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert torch.equal(found.fill_(1), expected.fill_(1))


def test_untouched_zeros_take_no_memory():
    before = resident()
    zeros = _untouched_zeros((2**26,), dtype=torch.float32)
    assert float(zeros.sum()) == 0
    assert resident() - before < 2**26
    del zeros


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
