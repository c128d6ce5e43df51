import pytest
import torch

from planimeter.data.formats import read_cifar, read_idx
from planimeter.errors import InputError

IDX = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))


def test_idx_is_read_row_by_row():
    assert read_idx(IDX).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00", "not an idx file"),
        (b"\x00\x00\x0d" + IDX[3:], "not an idx file of unsigned bytes"),  # floats
        (IDX[:-1], "an idx file of 2 x 3 values has 18 bytes, this one 17"),
        (IDX[:10], "has"),
        (IDX + b"!", "this one 19"),
    ],
)
def test_what_is_no_idx_file_is_refused(raw, message):
    with pytest.raises(InputError, match=message):
        read_idx(raw)


@pytest.mark.parametrize("labels", [1, 2])
def test_cifar_rows_are_labels_and_three_planes(labels):
    """Pixel (channel, row, column) is told by its place alone."""
    raw = b"".join(
        bytes([5, row + 1][-labels:] + [(row + i // 7) % 256 for i in range(3072)])
        for row in range(4)
    )
    images, numbers = read_cifar(raw, labels)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert numbers.tolist() == [1, 2, 3, 4]
    place = 1024 * 2 + 32 * 5 + 9
    assert int(images[3, 2, 5, 9]) == (3 + place // 7) % 256


@pytest.mark.parametrize(("size", "labels"), [(3074, 1), (3073, 2), (0, 1)])
def test_cifar_files_have_whole_rows(size, labels):
    with pytest.raises(InputError, match=f"{size} bytes are no multiple of {3072 + labels}"):
        read_cifar(bytes(size), labels)
