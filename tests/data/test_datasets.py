import pytest
import torch

from planimeter.data import DATASETS, images, load
from planimeter.errors import InputError


def test_digits_are_the_known_images():
    digits = load("digits")
    assert digits.inputs.shape == (1797, 1, 8, 8)
    assert digits.inputs.values.dtype == torch.uint8
    pixels = digits.inputs[:]
    assert pixels.dtype == torch.float32
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.test_inputs is None


@pytest.mark.data
def test_mnist_is_the_known_set():
    mnist = load("mnist")
    assert mnist.inputs.shape == (60000, 1, 28, 28)
    assert mnist.labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    assert mnist.test_labels.bincount().tolist()[:3] == [980, 1135, 1032]
    assert float(mnist.inputs[:].mean()) == pytest.approx(0.1307, abs=1e-4)  # the usual constant
    assert float(mnist.inputs[:100].max()) == 1.0


@pytest.mark.data("fashion-mnist")
def test_fashion_mnist_is_the_known_set():
    fashion = load("fashion-mnist")
    assert fashion.inputs.shape == (60000, 1, 28, 28)
    assert fashion.labels.bincount().tolist() == [6000] * 10
    assert fashion.test_labels.bincount().tolist() == [1000] * 10
    assert float(fashion.inputs[:].mean()) == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.slow
@pytest.mark.data("cifar10")
def test_cifar10_is_the_known_set():
    cifar10 = load("cifar10")
    assert cifar10.inputs.shape == (50000, 3, 32, 32)
    assert cifar10.inputs.values.dtype == torch.uint8
    assert cifar10.test_inputs.shape == (10000, 3, 32, 32)
    assert cifar10.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar10.test_labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert cifar10.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test_labels.bincount().tolist() == [1000] * 10
    mean = cifar10.inputs.values.double().mean(dim=(0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # usual constants


@pytest.mark.slow
@pytest.mark.data("cifar100")
def test_the_subset_of_cifar100_has_its_counts():
    subset = load("cifar100-subset")
    assert subset.inputs.shape == (10000, 3, 32, 32)
    assert subset.labels.bincount().tolist() == [100] * 100
    assert subset.test_labels.bincount().tolist() == [20] * 100
    assert subset.class_names[-1] == "worm"


@pytest.mark.data("uci")
@pytest.mark.parametrize(
    ("name", "columns", "counts"),  # of the .names files
    [
        ("ionosphere", 34, [126, 225]),
        ("sonar", 60, [97, 111]),
        ("haberman", 3, [225, 81]),
        ("banknote", 4, [762, 610]),
        ("breast-cancer-wisconsin", 9, [444, 239]),  # of 458 and 241, 16 have a missing value
    ],
)
def test_tables_have_their_counts(name, columns, counts):
    table = load(name)
    assert table.inputs.shape == (sum(counts), columns)
    assert table.labels.bincount().tolist() == counts
    assert DATASETS[name].rows == (sum(counts), 0)


def test_what_is_known_beforehand_is_so():
    for name, info in DATASETS.items():
        assert len(info.class_names) in (0, info.classes), name
        if info.files is None:
            dataset = load(name)
            assert dataset.classes == info.classes == int(dataset.labels.max()) + 1
            assert info.rows is None or info.rows[0] == len(dataset.labels)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match=r"digits, mnist.*; did you mean 'fashion-mnist'\?"):
        load("fashion_mnist")
    with pytest.raises(InputError, match="digits has no setting 'n'"):
        load("digits", n=7)


def test_a_missing_file_names_the_path_and_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    with pytest.raises(InputError, match=f"{path}.*planimeter data fetch mnist"):
        load("mnist")
    path = tmp_path / "uci" / "sonar.csv"
    with pytest.raises(InputError, match=rf"{path}.*put sonar\.csv .*is called sonar\.all-data"):
        load("sonar")


def test_mnist_and_cifar_from_their_files(monkeypatch, tmp_path):
    """Small sets of the same form: parts and channels are where they belong."""
    from .test_files import md5

    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))
    (tmp_path / "toy").mkdir()

    def file_set(contents):
        for name, content in contents.items():
            (tmp_path / "toy" / name).write_bytes(content)
        return images.FileSet("toy", md5={}, members={n: md5(c) for n, c in contents.items()})

    def idx(*shape, first):
        sizes = b"".join(size.to_bytes(4, "big") for size in shape)
        count = torch.Size(shape).numel()
        head = bytes([0, 0, 8, len(shape)])
        return head + sizes + bytes((first + i) % 256 for i in range(count))

    toy = images.load_idx(
        file_set(
            {
                "train-images": idx(3, 2, 2, first=0),
                "train-labels": idx(3, first=1),
                "t10k-images": idx(1, 2, 2, first=100),
                "t10k-labels": idx(1, first=9),
            }
        )
    )
    assert torch.equal(toy.inputs[:].flatten(), torch.arange(12) / 255)
    assert toy.labels.tolist() == [1, 2, 3]
    assert torch.equal(toy.test_inputs[0,].flatten(), torch.arange(100, 104) / 255)
    assert toy.test_labels.tolist() == [9]
    rows = [bytes([7, fine]) + bytes([fine] * 3072) for fine in (99, 12, 50)]
    toy = images.load_cifar(file_set({"train.bin": b"".join(rows[:2]), "test.bin": rows[2]}), 100)
    assert toy.labels.tolist() == [99, 12]  # the fine ones
    assert toy.test_labels.tolist() == [50]
    assert toy.inputs.values[:, 2, 5, 9].tolist() == [99, 12]
