"""A layer's measure is that of the loss as a function of the layer's parameters alone."""

import pytest
import torch

from planimeter.errors import InputError
from planimeter.flatness import MEASURES, measure, measure_layers
from planimeter.flatness.by_layer import layer_names
from planimeter.models.mnist import convnet

EXACT = {"trace": {"probes": 1000}, "frobenius_norm": {"probes": 1000}}


@pytest.fixture
def blocks(small_landscape):
    """Each layer's diagonal block of the dense Hessian."""
    hessian, dense = small_landscape.hessian(), small_landscape.hessian().dense()
    result = {}
    for layer in layer_names(small_landscape):
        parts = [p for name, p in hessian.blocks.items() if name.startswith(f"{layer}.")]
        indices = torch.cat([torch.arange(p.start, p.stop) for p in parts])
        result[layer] = dense[indices][:, indices]
    return result


def test_spectra_are_those_of_the_diagonal_blocks(small_landscape, blocks):
    names = ["top_eigenvalue", "spectral_norm", "trace", "frobenius_norm"]
    found = measure_layers(small_landscape, names, settings=EXACT)
    assert list(found) == ["0", "2"]
    for layer, block in blocks.items():
        values = torch.linalg.eigvalsh(block)
        expected = [values[-1], values.abs().max(), block.trace(), block.norm()]
        got = [found[layer][name].value for name in names]
        assert got == pytest.approx([float(e) for e in expected], rel=2e-3)


def test_traces_add_up_and_no_eigenvalue_is_above_the_networks(small_landscape):
    names = ["trace", "top_eigenvalue", "relative_flatness"]
    settings = {**EXACT, "relative_flatness": {"probes": 1000}}
    layers = measure_layers(small_landscape, names, settings=settings).values()
    whole = measure(small_landscape, names, settings=settings)
    for name in ("trace", "relative_flatness"):
        total = sum(found[name].value for found in layers)
        assert total == pytest.approx(whole[name].value, rel=1e-9)
    largest = max(found["top_eigenvalue"].value for found in layers)
    assert largest <= whole["top_eigenvalue"].value * (1 + 1e-6)


def test_the_riemannian_sharpness_of_one_block_is_scaled_by_its_norm(small_landscape):
    found = measure_layers(small_landscape, ["rangamani", "top_eigenvalue"], layers=["2.weight"])[
        "2.weight"
    ]
    norm = float(small_landscape.parameters["2.weight"].norm())
    assert found["rangamani"].value == pytest.approx(
        norm**2 * found["top_eigenvalue"].value, rel=2e-3
    )


def test_every_measure_by_layer_runs_on_a_layer():
    torch.manual_seed(0)
    from planimeter.landscape import LossLandscape

    x, y = torch.rand(24, 1, 28, 28), torch.arange(24) % 10
    network = convnet()
    part = LossLandscape(network, torch.nn.functional.cross_entropy, (x, y)).restricted(["2"])
    names = [n for n, m in MEASURES.items() if m.by_layer and "initial" not in m.settings]
    quick = {name: MEASURES[name].quick for name in names}
    refused: dict[str, str] = {}
    found = measure(part, names, settings=quick, refused=refused.__setitem__)
    assert set(found) | set(refused) == set(names)
    # What an untrained network may lack: positive eigenvalues, and accuracy to lose.
    assert all("log_product" in name or "pac_bayes" in name for name in refused)
    kernel = network[2].weight.detach()
    assert found["frobenius_product"].value == pytest.approx(
        2 * float(kernel.norm().log()), rel=1e-5
    )
    assert found["parameter_count"].value == sum(p.numel() for p in network[2].parameters())


def test_distances_from_the_start_are_those_of_the_layer(small_landscape):
    moved = small_landscape.at(small_landscape.theta + 1.0)
    settings = {"distance_from_init": {"initial": small_landscape}}
    found = measure_layers(moved, ["distance_from_init"], settings=settings)
    assert [found[layer]["distance_from_init"].value ** 2 for layer in ("0", "2")] == pytest.approx(
        [36.0, 21.0]
    )


def test_what_has_no_layers_and_layers_that_are_not_there(small_landscape):
    with pytest.raises(InputError, match="minimum_sharpness is defined for a whole network"):
        measure_layers(small_landscape, ["minimum_sharpness"])
    with pytest.raises(InputError, match=r"no parameter 'fc9'; there are 0\.weight"):
        measure_layers(small_landscape, ["trace"], layers=["fc9"])
    with pytest.raises(InputError, match="did you mean trace"):
        measure_layers(small_landscape, ["tracee"])
    with pytest.warns(UserWarning, match=r"0\.bias: log_product_top_k does not apply"):
        measure_layers(small_landscape, ["log_product_top_k", "trace"], layers=["0.bias"])
