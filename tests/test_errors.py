from pathlib import Path

import pytest

from planimeter.errors import InputError, check_writable


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new" / "a.png")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "there.png").write_bytes(b"old")
    check_writable(tmp_path / "there.png")
    assert (tmp_path / "there.png").read_bytes() == b"old"


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        check_writable(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*a\.png: "):
        check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match=r"cannot write to /proc/a\.png: "):
        check_writable(Path("/proc/a.png"))
