import hashlib
import http.server
import threading

import pytest

from planimeter.data import files
from planimeter.data.fetching import fetch
from planimeter.errors import InputError

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several pieces
NAME = "pixels.bin"
PARTIAL = f"{NAME}.partial"
SET = files.FileSet(
    "toy",
    md5={NAME: hashlib.md5(CONTENT).hexdigest()},
    members={NAME: hashlib.md5(CONTENT).hexdigest()},
    address="http://127.0.0.1:1/nowhere",
)


class Server(http.server.BaseHTTPRequestHandler):
    """Knows ranges, if `ranges`; breaks off after `breaks` bytes of a body, if set."""

    ranges, breaks = True, None

    def do_GET(self):
        content = (self.site / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.breaks])

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """A folder, its address on the loopback, and how it is served."""
    site = tmp_path / "site"
    site.mkdir()
    handler = type("Handler", (Server,), {"asked": [], "site": site})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (site / NAME).write_bytes(CONTENT)
    yield site, f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "toy"


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_fetches_what_is_missing_and_reads_it_checked(folder, mirror):
    told = []
    assert files.missing_files(SET) == [folder / NAME]
    fetch(SET, address=mirror[1], progress=lambda *what: told.append(what))
    assert files.missing_files(SET) == []
    assert dict(files.read_members(SET)) == {NAME: CONTENT}
    assert told[0] == (NAME, 0, 0)
    assert told[-1] == (NAME, len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert names(folder) == [NAME]
    fetch(SET)  # nothing is missing, so the dead address is never asked


@pytest.mark.parametrize("ranges", [True, False])
def test_what_was_cut_off_goes_on_where_it_ended(folder, mirror, ranges):
    _, address, handler = mirror
    handler.ranges, handler.breaks = ranges, 300_000
    with pytest.raises(
        InputError, match=r"ended after 300000 of 1048576 .*pixels.bin.partial goes"
    ):
        fetch(SET, address=address)
    assert names(folder) == [PARTIAL]
    assert (folder / PARTIAL).read_bytes() == CONTENT[:300_000]
    assert files.missing_files(SET) == [folder / NAME]  # half a file is no file
    handler.breaks = None
    fetch(SET, address=address)
    assert handler.asked == [None, "bytes=300000-"]
    assert dict(files.read_members(SET)) == {NAME: CONTENT}
    assert names(folder) == [NAME]


def test_a_whole_partial_file_only_has_to_be_moved(folder, mirror):
    folder.mkdir(parents=True)
    (folder / PARTIAL).write_bytes(CONTENT)
    fetch(SET, address=mirror[1])
    assert names(folder) == [NAME]


def test_a_wrong_file_leaves_nothing_behind(folder, mirror):
    site, address, _ = mirror
    (site / NAME).write_bytes(b"something else")
    with pytest.raises(InputError, match=r"pixels\.bin by hand"):
        fetch(SET, address=address)
    assert names(folder) == []


def test_the_rest_of_another_file_is_noticed_and_forgotten(folder, mirror):
    folder.mkdir(parents=True)
    (folder / PARTIAL).write_bytes(b"of an older version")
    with pytest.raises(InputError, match="by hand"):
        fetch(SET, address=mirror[1])
    assert names(folder) == []
    fetch(SET, address=mirror[1])
    assert names(folder) == [NAME]


def test_an_archive_and_its_members(folder, mirror):
    from .test_files import PACKED, PARTS, md5, pack

    site, address, _ = mirror
    pack(site / "parts.tar.gz", PARTS)
    right = md5((site / "parts.tar.gz").read_bytes())
    packed = files.FileSet("toy", md5={"parts.tar.gz": right}, members=PACKED.members, address="x")
    fetch(packed, address=address)
    assert dict(files.read_members(packed)) == PARTS


def test_what_cannot_be_reached_says_where_to_put_it(folder):
    with pytest.raises(InputError, match=f"put the file at {folder / NAME} by hand"):
        fetch(SET)
    assert not folder.exists()


def test_what_is_not_published_says_where_it_is_from(folder):
    table = files.FileSet("toy", md5=SET.md5, members=SET.members, source="from a friend")
    with pytest.raises(InputError, match=rf"put {NAME} into {folder} \(from a friend\)"):
        fetch(table)


def test_the_command_fetches_and_says_where(folder, mirror, monkeypatch):
    from typer.testing import CliRunner

    from planimeter.cli.data import app
    from planimeter.data.datasets import DATASETS, DatasetInfo

    toy = DatasetInfo("a toy", (1, 0), 2, lambda: None, SET)
    monkeypatch.setitem(DATASETS, "toy", toy)
    for _ in range(2):  # the second time, there is nothing to do
        result = CliRunner().invoke(app, ["fetch", "toy", "--mirror", mirror[1], "--json"])
        assert result.exit_code == 0, result.output
        assert str(folder) in result.stdout
    assert mirror[2].asked == [None]
