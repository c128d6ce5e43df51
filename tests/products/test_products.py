import copy
import gc
import warnings

import pytest
import torch
from torch import nn

from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.products import products as products_module
from planimeter.products.tape import Tape

F = nn.functional


def log_cosh(outputs, targets):
    return (outputs - targets).cosh().log().mean()


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, outputs)).double()


def labelled(loss, rows):
    """A network and data for a loss."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    if loss is F.cross_entropy:
        return network(3), (inputs, torch.randint(0, 3, (rows,), generator=generator))
    if loss is binary_cross_entropy:
        return network(1), (inputs, torch.randint(0, 2, (rows,), generator=generator))
    return network(2), (inputs, torch.randn(rows, 2, generator=generator, dtype=torch.float64))


def of_flat(model):
    """The model's outputs as a function of its flat parameters, and these."""
    named = {n: p.detach() for n, p in model.named_parameters()}

    def outputs(flat, inputs):
        pieces = flat.split([p.numel() for p in named.values()])
        state = {n: v.reshape(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return torch.func.functional_call(model, state, (inputs,))

    return outputs, torch.cat([p.reshape(-1) for p in named.values()])


def dense_hessian(model, loss, data):
    outputs, theta = of_flat(model)
    function = torch.autograd.functional.hessian
    return function(lambda flat: loss(outputs(flat, data[0]), data[1]), theta)


def dense_gauss_newton(model, loss, data):
    outputs, theta = of_flat(model)
    jacobian = torch.autograd.functional.jacobian(lambda flat: outputs(flat, data[0]), theta)
    jacobian = jacobian.reshape(-1, len(theta))
    h = model(data[0]).detach()
    bend = torch.autograd.functional.hessian(
        lambda flat: loss(flat.reshape(h.shape), data[1]), h.reshape(-1)
    )
    return jacobian.T @ bend @ jacobian


LOSSES = [F.cross_entropy, binary_cross_entropy, F.mse_loss, log_cosh]
WAYS = [
    {"products": "auto"},
    {"products": "tape"},
    {"products": "graph"},
    {"products": "recompute"},
    {"products": "tape", "memory_budget": 0},
    {"products": "graph", "memory_budget": 0},
    {"memory_budget": 0},
    {"memory_budget": 20_000},
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_gives_the_dense_matrices(loss, way):
    model, data = labelled(loss, 40)
    landscape = LossLandscape(model, loss, data, batch_size=17, **way)
    torch.testing.assert_close(landscape.hessian().dense(), dense_hessian(model, loss, data))
    torch.testing.assert_close(
        landscape.gauss_newton().dense(), dense_gauss_newton(model, loss, data)
    )


@pytest.mark.parametrize("strategy", ["tape", "graph"])
@pytest.mark.parametrize("sizes", [(128, 128, 128, 116), (480, 20)])
@pytest.mark.parametrize("part", [0.0, 0.6, 1.0])
def test_uneven_batches_of_which_some_are_kept(sizes, part, strategy):
    loss = F.mse_loss if strategy == "tape" else F.cross_entropy
    model, data = labelled(loss, 500)
    dense = dense_hessian(model, loss, data)
    batches = list(zip(data[0].split(sizes), data[1].split(sizes), strict=True))

    def hessian(budget):
        kind = {"products": strategy, "memory_budget": budget}
        operator = LossLandscape(model, loss, batches, **kind).hessian()
        return operator @ v, operator.product

    v = torch.randn(dense.shape[0], 2, dtype=torch.float64)
    _, everything = hessian(2**30)
    assert everything.all_kept
    budget = int(part * everything.kept_bytes)
    found, products = hessian(budget)
    assert products.kept_bytes <= budget
    rows = sum(weight for weight, _ in products.kept)
    assert rows == {0.0: 0, 0.6: rows, 1.0: 500}[part]
    assert 0 < rows < 500 or part != 0.6 or sizes[0] > 300
    torch.testing.assert_close(found, dense @ v)


@pytest.mark.parametrize("way", [{}, {"products": "recompute"}], ids=str)
@pytest.mark.parametrize("mixes", [False, True])
def test_large_batches_are_cut_where_rows_do_not_mix(way, mixes, monkeypatch):
    model, data = labelled(F.cross_entropy, 100)
    model = nn.Sequential(model, nn.BatchNorm1d(3).double())
    monkeypatch.setitem(products_module.PIECE, "cpu", {"kept": 1000, "recomputed": 1000})
    policy = "train-frozen-buffers" if mixes else "eval"
    landscape = LossLandscape(model, F.cross_entropy, data, batch_norm=policy, **way)
    hessian = landscape.hessian()
    model.train(mixes)
    torch.testing.assert_close(hessian.dense(), dense_hessian(model, F.cross_entropy, data))
    assert hessian.product.function.rows == (None if mixes else 13)
    assert len(hessian.product.kept) == (0 if way else 1 if mixes else 8)


def test_data_in_memory_counts_once_for_all_pieces(monkeypatch):
    model, _ = labelled(F.mse_loss, 10)
    wide = nn.Sequential(nn.Linear(1000, 4).double(), model)
    data = torch.randn(200, 1000).double(), torch.randn(200, 2).double()
    hessian = LossLandscape(wide, F.mse_loss, data, batch_size=10, products="tape").hessian()
    hessian @ torch.ones(hessian.size, dtype=torch.float64)
    assert len(hessian.product.kept) == 20
    assert hessian.product.kept_bytes < 2 * data[0].nbytes


@pytest.mark.parametrize("budget", [None, 0])
def test_rounding_alone_is_no_disagreement(budget, monkeypatch):
    """A product that nearly vanishes has few right digits, whichever way it is computed."""
    model, (x, y) = labelled(F.cross_entropy, 40)
    # Also recomputed where nothing fits.
    monkeypatch.setitem(products_module.PIECE, "cpu", {"kept": 1, "recomputed": 1})
    landscape = LossLandscape(model.float(), F.cross_entropy, (x.float(), y), memory_budget=budget)
    hessian = landscape.hessian()
    all_logits = torch.zeros(hessian.size, dtype=torch.float64)
    all_logits[-3:] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        assert float((hessian @ all_logits).norm()) < 1e-6


def test_pieces_that_are_kept_stay_when_something_else_runs_out_of_memory():
    model, data = labelled(F.cross_entropy, 200)
    whole = LossLandscape(model, F.cross_entropy, data, batch_size=50, products="tape").hessian()
    exact = whole.dense()
    budget = int(0.6 * whole.product.kept_bytes)
    landscape = LossLandscape(
        model, F.cross_entropy, data, batch_size=50, products="tape", memory_budget=budget
    )
    hessian = landscape.hessian()
    torch.testing.assert_close(hessian.dense(), exact)
    assert 0 < len(hessian.product.kept) < 4
    with pytest.warns(MeasurementWarning, match="going on with 25"):
        landscape.function.shrink("elsewhere")
    torch.testing.assert_close(hessian.dense(), exact)


@pytest.mark.parametrize("k", [1, 3, 8, 20, 27])
@pytest.mark.parametrize("way", [{}, {"products": "tape"}, {"products": "graph"}], ids=str)
def test_columns_together_are_columns_one_by_one(k, way):
    model, data = labelled(F.cross_entropy, 60)
    landscape = LossLandscape(model, F.cross_entropy, data, batch_size=40, **way)
    for operator in (landscape.hessian(), landscape.gauss_newton(), landscape.empirical_fisher()):
        columns = torch.randn(operator.size, k, dtype=torch.float64)
        one_by_one = torch.stack([operator @ c for c in columns.unbind(1)], dim=1)
        torch.testing.assert_close(operator @ columns, one_by_one)
        assert (operator @ columns).shape == columns.shape


class Nets(nn.Module):
    """Convolution, batch norm, pooling, embedding and attention in one model."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.encode = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True, activation="gelu")
        self.convolve = nn.Conv1d(4, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.read = nn.Linear(9, 2)

    def forward(self, tokens):
        h = self.encode(self.embed(tokens)).transpose(1, 2)
        h = F.max_pool1d(F.relu(self.norm(self.convolve(h)), inplace=True), 2)
        return self.read(h.flatten(1))


@pytest.mark.parametrize("strategy", ["tape", "graph", "recompute"])
def test_ways_agree_on_a_model_of_many_layers(strategy):
    torch.manual_seed(0)
    model, data = Nets().double(), (torch.randint(0, 5, (7, 6)), torch.randint(0, 2, (7,)))
    landscape = LossLandscape(model, F.cross_entropy, data, products=strategy)
    v = torch.randn(landscape.num_parameters, 9, dtype=torch.float64)
    step = 1e-6
    for column, product in zip(v.unbind(1)[:2], (landscape.hessian() @ v).unbind(1), strict=False):
        at = [landscape.at(landscape.theta + s * step * column).gradient() for s in (1, -1)]
        torch.testing.assert_close(product, (at[0] - at[1]) / (2 * step), rtol=1e-5, atol=1e-7)
    reference = LossLandscape(model, F.cross_entropy, data, products="graph")
    torch.testing.assert_close(landscape.gauss_newton() @ v, reference.gauss_newton() @ v)


# -- what is checked ----------------------------------------------------------------------------


def test_a_tape_that_differs_from_the_graph_is_not_used(monkeypatch):
    model, data = labelled(F.cross_entropy, 40)
    record = products_module.record

    def wrong(function, examples):
        tape = record(function, examples)
        run = tape.run
        tape.run = lambda *tensors: [1.01 * t for t in run(*tensors)]
        return tape

    monkeypatch.setattr(products_module, "record", wrong)
    for budget in (None, 0):
        hessian = LossLandscape(model, F.cross_entropy, data, memory_budget=budget).hessian()
        with pytest.warns(MeasurementWarning, match=r"differ by 9\.9e-03.*autograd's graph"):
            found = hessian.dense()
        torch.testing.assert_close(found, dense_hessian(model, F.cross_entropy, data))


class WrongSlope(torch.autograd.Function):
    """x^3, whose forward derivative is wrong."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] ** 2 * tangent


class OnlyBackward(torch.autograd.Function):
    """x^3 without forward derivatives, in the old form that torch.func cannot use."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Cubic(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 3), nn.Linear(3, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("way", [{}, {"memory_budget": 0}, {"products": "recompute"}], ids=str)
def test_wrong_forward_derivatives_are_not_used(way):
    torch.manual_seed(0)
    _, data = labelled(F.mse_loss, 40)
    right = Cubic(lambda x: x**3).double()
    wrong = copy.deepcopy(right)
    wrong.function = WrongSlope.apply
    landscape = LossLandscape(wrong, F.mse_loss, data, **way)
    for found, dense in (
        (landscape.hessian(), dense_hessian(right, F.mse_loss, data)),
        (landscape.gauss_newton(), dense_gauss_newton(right, F.mse_loss, data)),
    ):
        with pytest.warns(MeasurementWarning, match="two ways to compute"):
            torch.testing.assert_close(found.dense(), dense)


@pytest.mark.parametrize("way", [{}, {"memory_budget": 0}, {"products": "recompute"}], ids=str)
def test_models_without_forward_derivatives_go_through_the_graph(way):
    torch.manual_seed(0)
    _, data = labelled(F.mse_loss, 40)
    right = Cubic(lambda x: x**3).double()
    model = copy.deepcopy(right)
    model.function = OnlyBackward.apply
    landscape = LossLandscape(model, F.mse_loss, data, batch_size=25, **way)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        found = landscape.hessian().dense()
        torch.testing.assert_close(found, dense_hessian(right, F.mse_loss, data))
        found = landscape.gauss_newton().dense()
        torch.testing.assert_close(found, dense_gauss_newton(right, F.mse_loss, data))
    insisting = LossLandscape(model, F.mse_loss, data, products="tape").hessian()
    with pytest.raises(InputError, match="cannot be recorded on a tape"):
        insisting @ torch.ones(insisting.size)


def test_translations_that_are_wrong_or_fail_are_not_used(monkeypatch):
    model, data = labelled(F.cross_entropy, 40)

    def wrong(run, **options):
        return lambda *tensors: [1.01 * t for t in run(*tensors)]

    def failing(run, **options):
        def translated(*tensors):
            raise OSError("no compiler")

        return translated

    for translate, reason in ((wrong, r"differs by 9\.9e-03"), (failing, "OSError: no compiler")):
        monkeypatch.setattr(torch, "compile", translate)
        landscape = LossLandscape(model, F.cross_entropy, data, products="tape", compile=True)
        with pytest.warns(MeasurementWarning, match=f"compiled product is not used.*{reason}"):
            found = landscape.hessian().dense()
        torch.testing.assert_close(found, dense_hessian(model, F.cross_entropy, data))


@pytest.mark.slow
def test_compiled_products_are_the_dense_matrix():
    model, data = labelled(F.cross_entropy, 40)
    landscape = LossLandscape(model, F.cross_entropy, data, products="tape", compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        found = landscape.hessian().dense()
    torch.testing.assert_close(found, dense_hessian(model, F.cross_entropy, data))


def test_unknown_ways_are_refused():
    model, data = labelled(F.cross_entropy, 40)
    with pytest.raises(InputError, match="no strategy 'fast'"):
        LossLandscape(model, F.cross_entropy, data, products="fast").hessian()
    with pytest.raises(InputError, match="must not be negative"):
        LossLandscape(model, F.cross_entropy, data, memory_budget=-1).hessian()


# -- memory -------------------------------------------------------------------------------------


class Limited(nn.Module):
    """Runs out of memory above some number of rows."""

    def __init__(self, inner, rows):
        super().__init__()
        self.inner, self.rows = inner, rows

    def forward(self, x):
        if len(x) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


def _of_limited(model, rows, data, strategy):
    landscape = LossLandscape(Limited(model, rows), F.cross_entropy, data, products=strategy)
    landscape.loss()
    return landscape


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("strategy", ["auto", "tape", "graph", "recompute"])
@pytest.mark.parametrize("rows", [1, 13, 20])
def test_batches_that_do_not_fit_are_cut(rows, strategy):
    model, data = labelled(F.cross_entropy, 30)
    whole = LossLandscape(model, F.cross_entropy, data)
    with pytest.warns(MeasurementWarning, match="out of memory with 30 rows at a time"):
        cut = _of_limited(model, rows, data, strategy)
    assert cut.loss() == pytest.approx(whole.loss(), rel=1e-13)
    torch.testing.assert_close(cut.gradient(), whole.gradient())
    assert cut.accuracy() == whole.accuracy()
    v = torch.ones(whole.num_parameters, 1)
    torch.testing.assert_close(cut.hessian() @ v, whole.hessian() @ v)
    torch.testing.assert_close(cut.gauss_newton() @ v, whole.gauss_newton() @ v)
    torch.testing.assert_close(cut.empirical_fisher() @ v, whole.empirical_fisher() @ v)
    assert (cut.monte_carlo_fisher(2) @ v).isfinite().all()


def test_products_that_do_not_fit_are_cut_and_their_size_remembered(monkeypatch):
    """The loss fits, its second derivative does not."""
    model, data = labelled(F.cross_entropy, 90)
    landscape = LossLandscape(model, F.cross_entropy, data, products="tape")
    record = products_module.record

    def limited(function, examples):
        if landscape.function.rows is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(function, examples)

    monkeypatch.setattr(products_module, "record", limited)
    with pytest.warns(MeasurementWarning, match="going on with 45"):
        found = landscape.hessian().dense()
    torch.testing.assert_close(found, dense_hessian(model, F.cross_entropy, data))
    assert landscape.function.rows == 45


def test_kept_values_are_given_up_when_memory_runs_out(monkeypatch):
    model, data = labelled(F.cross_entropy, 90)
    hessian = LossLandscape(model, F.cross_entropy, data, batch_size=45).hessian()
    exact, products = hessian.dense(), hessian.product

    def full(directions):
        raise torch.OutOfMemoryError("CUDA out of memory")

    products.kept = [(weight, full) for weight, _ in products.kept]
    products.blocks = {16: [], 8: []}
    with pytest.warns(MeasurementWarning, match="without keeping"):
        found = hessian.dense()
    torch.testing.assert_close(found, exact)
    assert not products.kept


def test_one_row_that_does_not_fit_is_an_error():
    model, data = labelled(F.cross_entropy, 20)
    with (
        pytest.warns(MeasurementWarning),
        pytest.raises(InputError, match="not enough memory for 1 rows"),
    ):
        LossLandscape(Limited(model, 0), F.cross_entropy, data).loss()
    mixed = nn.Sequential(Limited(model, 10), nn.BatchNorm1d(3)).double()
    with pytest.raises(InputError, match="not enough memory for 20 rows"):
        LossLandscape(mixed, F.cross_entropy, data, batch_norm="train-frozen-buffers").loss()


# -- what is not finite ---------------------------------------------------------------------------


def test_losses_that_are_not_finite_name_their_batch():
    model, (inputs, targets) = labelled(F.mse_loss, 40)
    targets[35] = float("inf")
    landscape = LossLandscape(model, F.mse_loss, (inputs, targets), batch_size=10)
    for call in (landscape.loss, landscape.gradient):
        with pytest.raises(InputError, match="the loss is inf on batch 3: parameters and inputs"):
            call()
    at = landscape.theta
    at[0] = float("nan")
    with pytest.raises(InputError, match=r"batch 0: parameter '0\.weight' has values"):
        landscape.at(at).hessian() @ at


@pytest.mark.parametrize("strategy", ["tape", "graph", "recompute"])
@pytest.mark.parametrize("k", [1, 8])
def test_products_that_are_not_finite_name_batch_and_parameter(strategy, k):
    """The square root has no slope at 0, where the second batch is."""
    model = nn.Linear(2, 1, bias=False).double()
    inputs = torch.rand(8, 2).double() + 0.1
    inputs[5] = 0.0
    with torch.no_grad():
        model.weight.fill_(1.0)

    def loss(h, y):
        return (h.abs() ** 1.5).mean()

    landscape = LossLandscape(model, loss, (inputs, torch.zeros(8)), batch_size=4,
                              products=strategy)  # fmt: skip
    assert landscape.gradient().isfinite().all()
    with pytest.raises(InputError, match="Hessian is not finite in parameter 'weight', on batch 1"):
        landscape.hessian() @ torch.ones(2, k)


def test_derivatives_inside_inference_mode_are_refused():
    model, data = labelled(F.cross_entropy, 20)
    landscape = LossLandscape(model, F.cross_entropy, data)
    hessian = landscape.hessian()
    with torch.inference_mode():
        for call in (
            lambda: hessian @ torch.ones(hessian.size),
            landscape.gradient,
            lambda: landscape.at(torch.zeros(hessian.size)),
            lambda: LossLandscape(model, F.cross_entropy, data),
        ):
            with pytest.raises(InputError, match="inference_mode"):
                call()
        rows = data[0].clone()
    found = LossLandscape(model, F.cross_entropy, (rows, data[1])).hessian()
    torch.testing.assert_close(found.dense(), hessian.dense())


def test_products_with_insisted_tapes_repeat_bit_by_bit():
    model, data = labelled(F.cross_entropy, 60)
    v = torch.randn(27, 20, dtype=torch.float64)
    one, two = (
        LossLandscape(model, F.cross_entropy, data, products="tape", batch_size=40).hessian()
        for _ in range(2)
    )
    assert torch.equal(one @ v, two @ v)
    assert isinstance(one.product.blocks[16][0], Tape)


def test_blocks_are_tried_after_many_single_columns(monkeypatch):
    monkeypatch.setattr(products_module, "SINGLES", 24)
    model, data = labelled(F.cross_entropy, 60)
    hessian = LossLandscape(model, F.cross_entropy, data, products="tape").hessian()
    v = torch.randn(27, 45, dtype=torch.float64)
    exact = dense_hessian(model, F.cross_entropy, data) @ v
    torch.testing.assert_close(hessian @ v[:, :23], exact[:, :23])
    assert not hessian.product.blocks
    torch.testing.assert_close(hessian @ v, exact)  # one more alone, then 16, again many alone
    assert list(hessian.product.blocks) == [16]
    assert hessian.product.singles == 12
    torch.testing.assert_close(hessian @ v, exact)
    torch.testing.assert_close(hessian @ v[:, :8], exact[:, :8])
    assert list(hessian.product.blocks) == [16, 8]


@pytest.mark.parametrize("strategy", ["auto", "recompute"])
def test_nothing_of_a_landscape_stays_in_memory(strategy):
    model, data = labelled(F.cross_entropy, 64)

    def tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    def product():
        hessian = LossLandscape(model, F.cross_entropy, data, products=strategy).hessian()
        hessian @ torch.ones(hessian.size)

    product()
    before = tensors()
    product()
    assert tensors() == before
