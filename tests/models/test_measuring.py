"""Products with the Hessian and rescalings, on every architecture that is small enough."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from planimeter.landscape import LossLandscape
from planimeter.models.registry import MODELS, build_model
from planimeter.network import evaluation_mode
from planimeter.symmetry import find_rescalings

# Short relatives stand for what differs from them in depth and width alone.
CASES = [
    ("logistic_regression", {}, (1, 8, 8)),
    ("fully_connected", {}, (1, 8, 8)),
    ("mlp", {"hidden": (5, 20, 7)}, (1, 8, 8)),
    ("mlp", {"hidden": (6,) * 5, "biases": False}, (1, 8, 8)),
    ("rangamani_mlp", {}, (1, 8, 8)),
    ("lenet5", {}, (1, 12, 12)),
    ("lenet5", {"biases": False}, (1, 12, 12)),
    ("convnet", {}, (1, 12, 12)),
    ("cifar_alexnet", {}, (3, 8, 8)),
    ("all_cnn", {}, (3, 12, 12)),
    ("vgg16", {"hidden": (20, 12)}, (3, 8, 8)),
    ("vgg16_bn", {"hidden": (20, 12)}, (3, 8, 8)),
    ("resnet20", {}, (3, 8, 8)),
    ("preresnet", {"depth": 14}, (3, 8, 8)),
    ("bottleneck_preresnet", {"depth": 20}, (3, 8, 8)),
    ("wide_resnet", {"depth": 10, "width": 2}, (3, 8, 8)),
    ("resnet50", {}, (3, 8, 8)),
]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    """Narrow forms of what has one size only."""
    resnet50 = ((4, 2, 1), (6, 1, 2), (8, 1, 2), (8, 1, 2))
    monkeypatch.setattr("planimeter.models.resnet50._STAGES", resnet50)
    monkeypatch.setattr("planimeter.models.vgg._STAGES", ((4, 2), (6, 2), (8, 3), (8, 3), (8, 3)))


def network(name, settings, shape):
    """A network in float64 whose BatchNorms are not as new, and a few rows."""
    model = build_model(name, shape, 3, seed=1, **settings).double()
    generator = torch.Generator().manual_seed(2)
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.add_(drawn if key.endswith("running_var") else 0.2 * (drawn - 0.5))
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return model, x, torch.tensor([0, 2, 1])


@pytest.mark.parametrize(("name", "settings", "shape"), CASES, ids=str)
def test_hessian_products_are_those_of_double_backward(name, settings, shape):
    model, x, y = network(name, settings, shape)
    landscape = LossLandscape(model, cross_entropy, (x, y))
    v = torch.randn(landscape.num_parameters, generator=torch.Generator().manual_seed(3)).double()
    product = landscape.hessian() @ v

    parameters = list(model.parameters())
    with evaluation_mode(model):
        gradients = torch.autograd.grad(cross_entropy(model(x), y), parameters, create_graph=True)
    slope = torch.cat([g.reshape(-1) for g in gradients]) @ v
    expected = torch.cat([h.reshape(-1) for h in torch.autograd.grad(slope, parameters)])
    torch.testing.assert_close(product, expected, rtol=1e-8, atol=1e-10 * float(expected.norm()))
    assert float(expected.norm()) > 0


@pytest.mark.parametrize(("name", "settings", "shape"), CASES, ids=str)
def test_rescalings_leave_the_function_alone(name, settings, shape):
    model, x, _ = network(name, settings, shape)
    rescalings = find_rescalings(model, x[:1])
    if name == "logistic_regression":
        assert len(rescalings) == 0
        return
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with evaluation_mode(model), torch.no_grad():
        before = model(x)
        factors = rescalings.neuron_factors(torch.Generator().manual_seed(4), 4.0)
        after = torch.func.functional_call(model, rescalings.apply(state, factors), (x,))
    assert len(rescalings) >= 1
    assert float((after - before).norm() / before.norm()) < 1e-10


def test_every_kind_of_network_is_covered():
    longer = {"resnet32", "resnet56", "preresnet110", "preresnet110_bottleneck", "preresnet164"}
    assert {name for name, *_ in CASES} | longer | {"wide_resnet28_10"} == set(MODELS)
