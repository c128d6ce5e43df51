import dataclasses
import functools
import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from planimeter.data import files
from planimeter.errors import InputError

CONTENT = b"eight by eight"
SET = files.FileSet(
    "toy", {"pixels.bin": hashlib.md5(CONTENT).hexdigest()}, "http://127.0.0.1:1/nowhere"
)


PARTS = {"parts/one.bin": b"1" * 5000, "parts/two.bin": b"2" * 70}
PACKED = files.FileSet(
    "toy",
    {"parts.tar.gz": "of no member"},
    "http://127.0.0.1:1/nowhere",
    members={name: hashlib.md5(content).hexdigest() for name, content in PARTS.items()},
    repacked=("parts.tar.xz",),
)


def pack(path, parts):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, f"w:{path.suffix[1:]}") as archive:
        for name, content in {"parts/read.me": b"not a member", **parts}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


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


@pytest.mark.parametrize("form", ["parts.tar.gz", "parts.tar.xz", "parts", "."])
def test_members_are_the_same_packed_repacked_and_unpacked(folder, form):
    assert files.missing_files(PACKED) == [folder / "parts.tar.gz"]
    if form.startswith("parts.tar"):
        pack(folder / form, dict(reversed(PARTS.items())))
    else:
        (folder / form).mkdir(parents=True)
        for name, content in PARTS.items():
            (folder / form / name.removeprefix("parts/")).write_bytes(content)
    assert files.missing_files(PACKED) == []
    assert dict(files.read_members(PACKED)) == PARTS


def test_an_archive_is_fetched_whole(folder, mirror):
    site, address = mirror
    pack(site / "parts.tar.gz", PARTS)
    md5 = hashlib.md5((site / "parts.tar.gz").read_bytes()).hexdigest()
    packed = dataclasses.replace(PACKED, md5={"parts.tar.gz": md5})
    files.fetch(packed, address=address)
    assert dict(files.read_members(packed)) == PARTS


def test_an_archive_is_preferred_to_some_of_its_files(folder):
    pack(folder / "parts.tar.xz", PARTS)
    (folder / "one.bin").write_bytes(b"not looked at")
    assert dict(files.read_members(PACKED)) == PARTS


def test_a_missing_archive_says_what_would_do(folder):
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "one.bin").write_bytes(PARTS["parts/one.bin"])
    with pytest.raises(
        InputError,
        match=rf"{folder / 'parts.tar.gz'}.*parts\.tar\.xz nor its 2 files.*data fetch toy",
    ):
        list(files.read_members(PACKED))


@pytest.mark.parametrize("name", ["parts.tar.gz", "parts.tar.xz"])
def test_damage_in_an_archive_names_the_file_and_the_way_out(folder, name):
    path = folder / name
    pack(path, PARTS | {"parts/two.bin": b"two"})
    with pytest.raises(InputError, match=f"{path}/parts/two.bin is damaged.*delete {path} and run"):
        list(files.read_members(PACKED))
    pack(path, {"parts/one.bin": PARTS["parts/one.bin"]})
    with pytest.raises(InputError, match=f"{path} has no parts/two.bin: delete it and run"):
        list(files.read_members(PACKED))
    pack(path, PARTS)
    whole = path.read_bytes()
    for broken in (b"", b"garbage", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"{path} is damaged \(.*\): delete it and run"):
            list(files.read_members(PACKED))


def test_damage_in_an_unpacked_file_names_it(folder):
    folder.mkdir(parents=True)
    for name, content in PARTS.items():
        (folder / name.removeprefix("parts/")).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{folder / 'one.bin'} is damaged.*delete it and run"):
        list(files.read_members(PACKED))
