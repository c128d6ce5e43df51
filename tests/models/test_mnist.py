import torch

from planimeter.models.mnist import convnet, lenet5


def test_parameter_counts_and_outputs():
    for make, count in ((lenet5, 61_706), (convnet, 166_406)):
        model = make()
        assert sum(p.numel() for p in model.parameters()) == count
        assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    whole = torch.rand(2, 1, 32, 32)
    assert lenet5()(whole).shape == (2, 10)
