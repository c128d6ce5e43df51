import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from planimeter.errors import InputError
from planimeter.files import whole
from planimeter.training.checkpoints import load_checkpoint, save_checkpoint, save_weights


@contextmanager
def files_end_at(size):
    """Files cannot grow beyond some bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "page.html"
    with whole(path) as beside:
        beside.write_text("half")
        assert not path.exists()
        assert beside.suffix == path.suffix  # by which writers of figures go
    assert path.read_text() == "half"
    assert names(tmp_path) == ["new", "page.html"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(5, "I/O error")])
def test_what_was_there_stays_when_the_new_one_is_not_written(tmp_path, error):
    path = tmp_path / "page.html"
    path.write_text("old")
    expected = InputError if isinstance(error, OSError) else error

    def write():
        with whole(path) as beside:
            beside.write_text("new, but not whole")
            raise error

    with pytest.raises(expected):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_what_the_system_refuses_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot write to .*file/page.html: (Not a dir|File ex)"),
        whole(tmp_path / "file" / "page.html"),
    ):
        pass
    with (
        files_end_at(10),
        pytest.raises(InputError, match=r"cannot write to .*File too large; free some space"),
        whole(tmp_path / "page.html") as beside,
    ):
        beside.write_text("x" * 100)
    assert names(tmp_path) == ["file"]


def test_weights_and_checkpoints_are_whole_or_not_at_all(tmp_path):
    small, large = torch.nn.Linear(2, 2), torch.nn.Linear(50, 50)
    weights, folder = tmp_path / "net.safetensors", tmp_path / "run"
    for model in (small, large):
        for write in (
            lambda model=model: save_weights(model, weights),
            lambda model=model: save_checkpoint(
                folder, 3, model.state_dict(), {"more": [torch.zeros(500), "x" * 3000]}
            ),
        ):
            if model is small:
                write()
                continue
            before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
            with files_end_at(1000), pytest.raises(InputError, match=r"cannot write .*free some"):
                write()
            assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert load_checkpoint(folder / "epoch-000003")[0]["weight"].shape == (2, 2)


def test_a_disk_that_is_full_of_another_kind(tmp_path):
    """`/dev/full` refuses every byte."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(InputError, match="No space left on device; free some space there"),
        whole(tmp_path / "page.html"),
        device.open("w") as full,
    ):
        full.write("x")
