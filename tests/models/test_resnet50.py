import pytest
import torch

from planimeter.errors import InputError
from planimeter.models.resnet50 import resnet50


@pytest.fixture(scope="module")
def network():
    return resnet50(generator=torch.Generator().manual_seed(0)).eval()


def test_has_its_known_number_of_parameters(network):
    total = sum(p.numel() for p in network.parameters())
    assert total == 25_557_032
    assert total - sum(p.numel() for p in network.fc.parameters()) == 23_508_032


def test_names_are_those_of_the_public_weights(network):
    names = list(network.state_dict())
    assert len(names) == 320
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert "layer1.0.downsample.0.weight" in names
    assert "layer4.2.bn3.num_batches_tracked" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert network.layer2[0].conv2.stride == (2, 2)


def test_convolutions_are_normal_by_fan_out(network):
    weights = network.layer3[0].conv2.weight.detach()
    assert float(weights.std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("small", "size"), [(True, 32), (False, 64)])
def test_stems(small, size):
    network = resnet50(2, small_images=small, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 2)
        stem = network.maxpool(network.conv1(torch.zeros(1, 3, size, size)))
    assert stem.shape[-1] == (size if small else size // 4)


def test_torchs_generator_is_left_alone():
    state = torch.get_rng_state()
    first = resnet50(1, generator=torch.Generator().manual_seed(1)).fc.weight
    again = resnet50(1, generator=torch.Generator().manual_seed(1)).fc.weight
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(InputError, match="0"):
        resnet50(0)
