import pytest
import torch

from planimeter.data import OrderedBatches, StoredInputs, load, split, training_batches
from planimeter.data.batches import flip_crop
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape

PHOTOS = torch.randint(
    1, 256, (50, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
STORED = StoredInputs(PHOTOS, 255).normalised((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
LABELS = torch.arange(50)


def epoch(seed=0, **settings):
    source = training_batches(STORED, LABELS, batch_size=16, **settings)
    return list(source(torch.Generator().manual_seed(seed)))


def test_an_epoch_has_every_row_once_in_a_new_order():
    batches = epoch()
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    labels = torch.cat([labels for _, labels in batches])
    assert torch.equal(labels, torch.randperm(50, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), STORED[labels])
    source = training_batches(STORED, LABELS, batch_size=50)
    generator = torch.Generator().manual_seed(0)
    (first,), (second,) = list(source(generator)), list(source(generator))
    assert not torch.equal(first[1], second[1])
    assert sorted(second[1].tolist()) == LABELS.tolist()


def test_the_generator_alone_decides():
    state = torch.get_rng_state()
    one, same, other = (epoch(seed, augmentation="flip_crop") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0][0], other[0][0])


def test_an_augmented_image_is_a_crop_of_its_padded_self_or_mirror_image():
    changed = flip_crop(PHOTOS, torch.Generator().manual_seed(1))
    assert changed.dtype == torch.uint8
    seen = set()
    for image, result in zip(PHOTOS, changed, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        places = {
            (flipped, y, x)
            for flipped in (False, True)
            for y in range(9)
            for x in range(9)
            if torch.equal(result.flip(2) if flipped else result, padded[:, y : y + 12, x : x + 12])
        }
        assert len(places) == 1
        seen |= places
    assert len(seen) > 40  # nearly all different, of 162
    assert {y for _, y, _ in seen} == {x for _, _, x in seen} == set(range(9))
    assert {flipped for flipped, _, _ in seen} == {True, False}


def test_black_is_what_moves_in_before_normalisation():
    batches = epoch(augmentation="flip_crop")
    inputs = torch.cat([inputs for inputs, _ in batches])
    black = torch.tensor([(0 - 0.1) / 0.5, (0 - 0.2) / 0.6, (0 - 0.3) / 0.7])
    smallest = inputs.amin(dim=(0, 2, 3))
    torch.testing.assert_close(smallest, black)


def test_order_of_the_first_epoch_is_the_same_with_augmentation():
    plain, augmented = epoch(), epoch(augmentation="flip_crop")
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, augmented, strict=True))


def test_what_is_measured_cannot_be_augmented():
    """Neither what makes augmented batches nor an epoch of them is data of a landscape."""
    digits = split(load("digits"), train=40, test=10)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    source = training_batches(*digits.with_attack_set(0, 0), batch_size=8, augmentation="flip_crop")
    for data in (source, source(torch.Generator())):
        with pytest.raises(InputError, match=r"data must be tensors .* or an iterable"):
            LossLandscape(net, torch.nn.functional.cross_entropy, data)
    before = digits.train_inputs.clone()
    list(source(torch.Generator()))
    assert torch.equal(digits.train[:], before)


def test_ordered_batches_are_what_a_landscape_takes():
    digits = split(load("digits"), train=40, test=10)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    batches = OrderedBatches(digits.train, digits.train_labels, 12)
    assert len(batches) == len(list(batches)) == 4
    cross_entropy = torch.nn.functional.cross_entropy
    in_batches = LossLandscape(net, cross_entropy, batches)
    whole = LossLandscape(net, cross_entropy, (digits.train_inputs, digits.train_labels))
    assert in_batches.loss() == pytest.approx(whole.loss(), rel=1e-6)
    torch.testing.assert_close(in_batches.gradient(), whole.gradient(), rtol=1e-5, atol=1e-7)


def test_ordered_batches_need_rows():
    with pytest.raises(InputError, match="a batch of 0 rows was asked for, there are 50"):
        OrderedBatches(STORED, LABELS, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 51}, "a batch of 51 rows was asked for, there are 50"),
        ({"batch_size": 0}, "a batch of 0 rows"),
        ({"augmentation": "flip"}, "no augmentation 'flip'"),
        ({"augmentation": "flipcrop"}, "did you mean 'flip_crop'"),
        ({"labels": LABELS[:4]}, "there are 50 inputs and 4 labels"),
        (
            {"inputs": StoredInputs(torch.zeros(50, 4)), "augmentation": "flip_crop"},
            r"is for images, but the rows have shape \(4,\)",
        ),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(InputError, match=message):
        training_batches(**({"inputs": STORED, "labels": LABELS, "batch_size": 5} | settings))
