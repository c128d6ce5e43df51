import os
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import cross_entropy

from planimeter.data import load, normalise
from planimeter.errors import InputError
from planimeter.models.loading import load_checkpoint
from planimeter.models.resnet import cifar_resnet, resnet20, resnet32, resnet56


@pytest.mark.parametrize(
    ("make", "parameters"), [(resnet20, 269_722), (resnet32, 464_154), (resnet56, 853_018)]
)
def test_the_networks_of_the_paper(make, parameters):
    net = make()
    assert sum(p.numel() for p in net.parameters()) == parameters  # 0.27, 0.46, 0.85 M: Table 6
    assert net.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_layers_are_as_many_as_the_depth_says():
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    for depth in (8, 20, 44):
        assert sum(isinstance(m, layers) for m in cifar_resnet(depth).modules()) == depth


def test_a_block_without_residual_is_its_shortcut():
    x = torch.rand(2, 16, 8, 8)
    net = resnet20().eval()
    for block in (net.layer1[0], net.layer2[0]):
        torch.nn.init.zeros_(block.bn2.weight)
    assert torch.equal(net.layer1[0](x), x)
    shortcut = net.layer2[0](x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2])
    assert int(shortcut[:, :8].count_nonzero() + shortcut[:, 24:].count_nonzero()) == 0


def test_initial_weights_have_the_variance_of_he_and_come_from_the_generator():
    nets = [cifar_resnet(8, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(p, q)
    weight = nets[0].layer3[0].conv2.weight
    assert float(weight.var()) == pytest.approx(2 / (64 * 9), rel=0.05)
    state = torch.random.get_rng_state()
    cifar_resnet(8, generator=torch.Generator())
    assert torch.equal(state, torch.random.get_rng_state())


def test_torch_func_maps_and_differentiates_it():
    generator = torch.Generator().manual_seed(0)
    net = cifar_resnet(8, generator=generator).double().eval()
    images = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 3, 9, 3])
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for name, p in parameters.items()
    }

    def loss(theta, x, y):
        return cross_entropy(functional_call(net, theta, (x,)), y)

    whole = grad(loss)(parameters, images, labels)
    rows = vmap(grad(loss), (None, 0, 0))(parameters, images[:, None], labels[:, None])
    for name, value in whole.items():
        torch.testing.assert_close(rows[name].mean(dim=0), value)
    _, slope = jvp(lambda theta: loss(theta, images, labels), (parameters,), (direction,))
    along = sum((value * direction[name]).sum() for name, value in whole.items())
    torch.testing.assert_close(slope, along)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(InputError, match=f"depth {depth} is not of the form"):
        cifar_resnet(depth)


@pytest.mark.slow
@pytest.mark.data("cifar10")
def test_a_trained_checkpoint_has_its_known_accuracy():
    """9173 of all 10,000 test images, 1833 of the first 2000, which are enough here."""
    checkpoint = Path(os.environ["PLANIMETER_DATA"]).parent / "checkpoints/resnet20-12fca82f.th"
    if not checkpoint.is_file():
        pytest.skip(f"there is no {checkpoint}")
    cifar10, net = load("cifar10"), resnet20().eval()
    load_checkpoint(net, checkpoint)
    images = normalise(cifar10.test_inputs[:2000], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        predicted = torch.cat([net(batch).argmax(dim=1) for batch in images.split(250)])
    # Other kernels may round a close call the other way.
    assert int((predicted == cifar10.test_labels[:2000]).sum()) == pytest.approx(1833, abs=2)
