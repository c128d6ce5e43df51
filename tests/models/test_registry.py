from pathlib import Path

import pytest
import torch

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.models.registry import MODELS, build_model, default_settings

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

# Name, settings, input, parameters with 10 outputs and with 100. docs/architectures.md has the
# sources of these numbers.
NETWORKS = [
    ("logistic_regression", {}, MNIST, 7_850, 78_500),
    ("fully_connected", {}, MNIST, 33_450, 37_140),
    ("mlp", {"hidden": (10, 100)}, MNIST, 9_960, 19_050),
    ("mlp", {"hidden": (5, 200, 50)}, MNIST, 15_685, 20_275),
    ("mlp", {"hidden": (15, 150)}, MNIST, 15_685, 29_275),
    ("mlp", {}, MNIST, 535_818, 558_948),
    ("rangamani_mlp", {}, MNIST, 1_455_104, 1_501_184),
    ("lenet5", {}, MNIST, 61_706, 69_356),
    ("lenet5", {"biases": False}, MNIST, 61_470, 69_030),
    ("convnet", {}, MNIST, 166_406, 175_496),
    ("cifar_alexnet", {}, CIFAR, 1_756_426, 1_773_796),
    ("all_cnn", {}, CIFAR, 1_369_738, 1_387_108),
    ("vgg16", {}, CIFAR, 15_245_130, 15_291_300),
    ("vgg16", {"hidden": (512, 240)}, CIFAR, 15_102_874, 15_124_564),
    ("vgg16_bn", {}, CIFAR, 15_253_578, 15_299_748),
    ("resnet20", {}, CIFAR, 269_722, 275_572),
    ("resnet32", {}, CIFAR, 464_154, 470_004),
    ("resnet56", {}, CIFAR, 853_018, 858_868),
    ("preresnet", {}, CIFAR, 272_282, 278_132),
    ("preresnet110", {}, CIFAR, 1_730_522, 1_736_372),
    ("bottleneck_preresnet", {}, CIFAR, 312_218, 335_348),
    ("preresnet110_bottleneck", {}, CIFAR, 1_146_842, 1_169_972),
    ("preresnet164", {}, CIFAR, 1_703_258, 1_726_388),
    ("wide_resnet", {}, CIFAR, 2_748_890, 2_772_020),
    ("wide_resnet28_10", {}, CIFAR, 36_479_194, 36_536_884),
    ("resnet50", {}, CIFAR, 23_520_842, 23_705_252),
]


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "shape", "ten", "hundred"), NETWORKS, ids=lambda v: str(v)
)
def test_parameters_outputs_and_evaluation(name, settings, shape, ten, hundred):
    model = build_model(name, shape, 10, **settings).eval()
    assert count(model) == ten
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(x)
        assert torch.equal(model(x), logits)
        # In float64: a hundred layers amplify float32's rounding of a batch of another size.
        exact, x = model.double(), x.double()
        torch.testing.assert_close(exact(x[:1]), exact(x)[:1], rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, 10)
    assert bool(logits.isfinite().all())
    assert count(build_model(name, shape, 100, **settings)) == hundred


def test_every_architecture_is_counted_and_in_the_table_of_the_documentation():
    assert {name for name, *_ in NETWORKS} == set(MODELS)
    text = (Path(__file__).parents[2] / "docs/architectures.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert [(row[1].split("`")[1], row[3].strip()) for row in rows] == [
        (name, f"{ten:,}") for name, _, _, ten, _ in NETWORKS
    ]


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet50"}))
def test_other_images_fit(name):
    """Grey images and odd sizes; ResNet-50 alone insists on three channels."""
    model = build_model(name, (1, 17, 18), 3).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 1, 17, 18)).shape == (2, 3)


@pytest.mark.parametrize("name", ["fully_connected", "mlp", "lenet5", "all_cnn", "preresnet"])
def test_the_seed_decides_alone_and_torchs_generator_is_left_alone(name):
    before = torch.get_rng_state()
    one, same, other = (build_model(name, (1, 12, 12), 2, seed=s) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_fully_connected_is_the_same_network_by_name():
    by_name = build_model(
        "fully_connected", (1, 8, 8), 1, seed=2**32 - 5, hidden=(7, 3), sigma_w=1.3, sigma_b=0.5
    )
    direct = fully_connected(64, (7, 3), sigma_w=1.3, sigma_b=0.5, seed=2**32 - 5)
    for p, q in zip(by_name.parameters(), direct.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_outputs_are_refused(name):
    with pytest.raises(InputError, match=r"at least 1|must be positive"):
        build_model(name, (3, 32, 32), 0)


FLAT = {"logistic_regression", "fully_connected", "mlp", "rangamani_mlp"}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_inputs_that_are_no_images(name):
    if name in FLAT:
        assert build_model(name, (9,), 2)(torch.rand(4, 9)).shape == (4, 2)
    else:
        with pytest.raises(InputError, match=r"takes images.*shape \(9,\).*mlp"):
            build_model(name, (9,), 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vgg16bn", {}, "no model 'vgg16bn'; there are .*did you mean 'vgg16_bn'"),
        ("mlp", {"hiden": (3,)}, "mlp has no setting 'hiden'; .*did you mean 'hidden'"),
        ("resnet20", {"hidden": (3,)}, "resnet20 has no setting 'hidden'; it has none"),
        ("mlp", {"hidden": (0,)}, r"widths must be positive, got \[3072, 0, 2\]"),
        ("preresnet", {"depth": 21}, r"depth 21 is not of the form 6n \+ 2, such as 8, 14, 20"),
        ("wide_resnet", {"width": 0}, "width 0"),
    ],
)
def test_mistakes_are_explained(name, settings, message):
    with pytest.raises(InputError, match=message):
        build_model(name, (3, 32, 32), 2, **settings)


def test_too_small_images_and_other_channels_are_refused():
    with pytest.raises(InputError, match=r"all_cnn needs .* at least 9 x 9 pixels, got 8 x 8"):
        build_model("all_cnn", (1, 8, 8), 2)
    with pytest.raises(InputError, match="resnet50 takes images of 3 channels, got 1"):
        build_model("resnet50", (1, 32, 32), 2)


def test_settings_and_their_defaults():
    assert default_settings("lenet5") == {"biases": True}
    assert default_settings("resnet56") == {}
