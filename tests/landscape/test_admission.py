"""Modules are unwrapped, or refused in words that name what is in the way."""

import copy

import pytest
import torch
from torch import nn

from planimeter import InputError, LossLandscape, MeasurementWarning, find_rescalings, measure

cross_entropy = nn.functional.cross_entropy


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(14, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.arange(14) % 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def distributed(model):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        return nn.parallel.DistributedDataParallel(model)
    finally:
        torch.distributed.destroy_process_group()


def compiled_in_place(model):
    model = copy.deepcopy(model)
    model.compile()
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        distributed,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: nn.Sequential(torch.compile(model)),
        lambda model: nn.Sequential(nn.DataParallel(model)),
        compiled_in_place,
        torch.optim.swa_utils.AveragedModel,
    ],
)
def test_a_wrapper_is_measured_as_the_network_inside(wrap, net, rows):
    expected = LossLandscape(net, cross_entropy, rows).hessian().dense()
    wrapped = wrap(net)
    landscape = LossLandscape(wrapped, cross_entropy, rows)
    assert torch.allclose(landscape.hessian().dense(), expected, rtol=1e-12, atol=1e-14)
    if wrap is compiled_in_place:
        assert wrapped._compiled_call_impl is not None


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_rescalings_of_a_wrapper_are_named_as_those_of_the_landscape(wrap, rows):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    one, two = (find_rescalings(model, rows[0]) for model in (wrap(net), net))
    assert [r.name for r in one] == [r.name for r in two] == ["0 → 2"]


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Linear(4, 3, dtype=torch.complex64), "'weight' is complex.*view_as_real"),
        (lambda: torch.jit.script(nn.Linear(4, 3)), "the model is scripted"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3))), "module '0' is scripted"),
        (lambda: nn.LazyLinear(3), "lazy.*run the model once"),
        (lambda: nn.Linear(4, 3, device="meta"), "'weight' is on the meta device"),
        (quantised, "'0' is quantised"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), "frozen"),
        (lambda: nn.Tanh(), "no parameter of the model requires a gradient"),
        (lambda: nn.Linear, "must be a torch.nn.Module, got a type"),
    ],
)
def test_what_has_no_real_second_derivative_is_refused(model, words, rows):
    with pytest.raises(InputError, match=words):
        LossLandscape(model(), cross_entropy, rows)


class Spectrum(nn.Module):
    """Real parameters, and complex numbers on the way."""

    def __init__(self, real):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(4, 3)
        self.register_buffer("filter", torch.randn(4, dtype=torch.complex64))
        self.choice = nn.Parameter(torch.tensor([3, 0, 1, 2]), requires_grad=False)
        self.real = real

    def forward(self, x):
        z = torch.fft.fft(self.linear((torch.fft.fft(x)[:, self.choice] * self.filter).abs()))
        return torch.view_as_real(z) if self.real else z


def test_complex_outputs_buffers_and_whole_numbers_keep_their_parts(rows):
    """|z|^2 is the sum of two squares: what is not complex has the same Hessian."""
    inputs = rows[0].float()
    one = LossLandscape(Spectrum(False), lambda z, _: z.abs().square().mean(), (inputs, rows[1]))
    two = LossLandscape(Spectrum(True), lambda z, _: 2 * z.square().mean(), (inputs, rows[1]))
    expected = two.hessian().dense()
    assert torch.allclose(one.hessian().dense(), expected, rtol=1e-4, atol=1e-4)
    assert one.gradient().norm() == pytest.approx(float(two.gradient().norm()), rel=1e-5)
    for part in (one.gauss_newton, one.accuracy):
        with pytest.raises(InputError, match="outputs are complex"):
            part()
    with pytest.raises(InputError, match="the loss is complex"):
        LossLandscape(Spectrum(False), lambda z, _: z.mean(), (inputs, rows[1]))


def test_a_buffer_may_be_infinite_but_not_nan_where_it_counts(rows):
    class Masked(nn.Linear):
        def __init__(self, value, used):
            super().__init__(4, 3, dtype=torch.float64)
            self.register_buffer("mask", torch.tensor(value))
            self.used = used

        def forward(self, x):
            return super().forward(x) * (self.mask if self.used else 1)

    with pytest.raises(InputError, match=r"'mask'.*has NaN"):
        LossLandscape(Masked(float("nan"), True), cross_entropy, rows)
    masked = Masked(float("-inf"), False)
    landscape = LossLandscape(masked, cross_entropy, rows)
    assert landscape.with_state(masked.state_dict()).loss() == landscape.loss()


def test_rows_longer_than_the_largest_norm_stay_where_they_are(rows):
    tokens = torch.arange(56).reshape(14, 4) % 8
    torch.manual_seed(0)
    bounded = nn.Sequential(nn.Embedding(8, 3, max_norm=1.0), nn.Flatten(), nn.Linear(12, 3))
    own = nn.utils.parameters_to_vector(bounded.parameters()).detach().double()
    with pytest.warns(MeasurementWarning, match="rows of the embedding '0' are longer"):
        landscape = LossLandscape(bounded, cross_entropy, (tokens, rows[1]))
    landscape.hessian() @ torch.ones_like(own)
    assert torch.equal(landscape.theta, own)
    assert torch.equal(nn.utils.parameters_to_vector(bounded.parameters()).double(), own)
    assert bounded[0].max_norm == 1.0

    with torch.no_grad():
        bounded[0].weight.copy_(torch.renorm(bounded[0].weight, 2, 0, 1.0))
    value = LossLandscape(bounded, cross_entropy, (tokens, rows[1])).loss()  # and no warning
    expected = cross_entropy(bounded(tokens), rows[1])
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)


def test_weights_that_were_made_in_inference_mode_are_measured(rows):
    with torch.inference_mode():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    one, two = (LossLandscape(model, cross_entropy, rows) for model in (made, usual))
    assert torch.equal(one.hessian().dense(), two.hessian().dense())


class Halves(nn.Module):
    """The same network in two precisions, one after the other."""

    def __init__(self, first, last):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).to(first), nn.Linear(6, 3).to(last)

    def forward(self, x):
        hidden = self.first(x.to(self.first.weight.dtype)).tanh()
        return self.last(hidden.to(self.last.weight.dtype))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_parameters_may_have_several_dtypes(dtypes, rows):
    mixed = LossLandscape(Halves(*dtypes), cross_entropy, rows)
    plain = LossLandscape(Halves(torch.float64, torch.float64), cross_entropy, rows)
    names = ["trace", "gauss_newton_trace", "adaptive_sharpness", "standard_sharpness_l2"]
    found, expected = (measure(landscape, names) for landscape in (mixed, plain))
    for name in names:
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-3)
