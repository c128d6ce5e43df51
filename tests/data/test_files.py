import functools
import hashlib
import http.server
import threading

import pytest

from planimeter.data import files
from planimeter.errors import InputError

CONTENT = b"eight by eight"
SET = files.FileSet(
    "toy", {"pixels.bin": hashlib.md5(CONTENT).hexdigest()}, "http://127.0.0.1:1/nowhere"
)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "toy"


@pytest.fixture
def mirror(tmp_path):
    """A web server on the loopback address."""
    site = tmp_path / "site"
    site.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield site, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_fetches_what_is_missing_and_reads_it_checked(folder, mirror):
    site, address = mirror
    (site / "pixels.bin").write_bytes(CONTENT)
    assert files.missing_files(SET) == [folder / "pixels.bin"]
    files.fetch(SET, address=address)
    assert files.missing_files(SET) == []
    assert files.read_checked(SET, "pixels.bin") == CONTENT
    files.fetch(SET)  # nothing is missing, so the dead address is never asked


def test_a_wrong_file_leaves_nothing_behind(folder, mirror):
    site, address = mirror
    (site / "pixels.bin").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"pixels\.bin by hand"):
        files.fetch(SET, address=address)
    assert not list(folder.glob("*"))


def test_what_cannot_be_reached_says_where_to_put_it(folder):
    with pytest.raises(InputError, match=f"put the file at {folder / 'pixels.bin'} by hand"):
        files.fetch(SET)


def test_a_damaged_file_is_refused(folder):
    folder.mkdir(parents=True)
    (folder / "pixels.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="damaged: its md5 is"):
        files.read_checked(SET, "pixels.bin")
