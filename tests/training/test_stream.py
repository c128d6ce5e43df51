import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.training.stream import BatchStream, shuffled

ROWS = torch.arange(23.0)[:, None], torch.arange(23)


def labels(batches):
    return [int(y) for _, labels in batches for y in labels]


@given(st.integers(1, 23), st.integers(0, 5))
def test_every_row_comes_once_an_epoch(batch_size, seed):
    stream = BatchStream(shuffled(*ROWS, batch_size), seed)
    seen = []
    while stream.epochs < 2:
        seen += labels(stream.take())
    assert sorted(seen[:23]) == sorted(seen[23:]) == list(range(23))


@given(st.integers(1, 23), st.integers(0, 40))
def test_a_restored_stream_goes_on_where_it_was(batch_size, taken):
    source = shuffled(*ROWS, batch_size)
    stream, other = BatchStream(source, 3), BatchStream(source, 99)
    for _ in range(taken):
        stream.take()
    other.restore(stream.state())
    for _ in range(30):
        assert labels(stream.take()) == labels(other.take())
        assert stream.epochs == other.epochs


def test_a_whole_epoch_at_once():
    stream = BatchStream(shuffled(*ROWS, 5), 0, whole=True)
    batches = stream.take()
    assert sorted(labels(batches)) == list(range(23))
    assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
    assert stream.epochs == 1


def test_sources_may_draw_as_they_go():
    def noisy(generator):
        for _ in range(3):
            yield torch.randn(2, 1, generator=generator), torch.zeros(2)

    stream, other = BatchStream(noisy, 1), BatchStream(noisy, 2)
    for _ in range(4):
        stream.take()
    other.restore(stream.state())
    for _ in range(7):
        assert torch.equal(stream.take()[0][0], other.take()[0][0])


def test_a_source_without_batches_is_refused():
    with pytest.raises(InputError, match="gave none"):
        BatchStream(lambda generator: [], 0).take()
