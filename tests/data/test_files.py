import dataclasses
import gzip
import hashlib
import io
import lzma
import tarfile

import pytest

from planimeter.data import files
from planimeter.errors import InputError

NOWHERE = "http://127.0.0.1:1/nowhere"


def md5(content):
    return hashlib.md5(content).hexdigest()


PARTS = {"parts/one.bin": b"1" * 5000, "parts/two.bin": b"2" * 70}
PACKED = files.FileSet(
    "toy",
    md5={"parts.tar.gz": "of no member"},
    members={name: md5(content) for name, content in PARTS.items()},
    address=NOWHERE,
    repacked=("parts.tar.xz",),
)
SINGLE = files.FileSet(
    "toy",
    md5={"one.bin.gz": "as published", "two.bin.gz": "as published"},
    members={name.removeprefix("parts/"): md5(content) for name, content in PARTS.items()},
    address=NOWHERE,
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
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("form", ["parts.tar.gz", "parts.tar.xz", "parts", "."])
def test_members_are_the_same_packed_repacked_and_unpacked(folder, form):
    assert files.missing_files(PACKED) == [folder / "parts.tar.gz"]
    if form.startswith("parts.tar"):
        pack(folder / form, dict(reversed(PARTS.items())))
    else:
        (folder / form).mkdir(exist_ok=True)
        for name, content in PARTS.items():
            (folder / form / name.removeprefix("parts/")).write_bytes(content)
    assert files.missing_files(PACKED) == []
    assert dict(files.read_members(PACKED)) == PARTS


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
    for name, content in PARTS.items():
        (folder / name.removeprefix("parts/")).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{folder / 'one.bin'} is damaged.*delete it and run"):
        list(files.read_members(PACKED))


@pytest.mark.parametrize("level", [0, 9])
def test_gzip_files_are_checked_by_what_is_in_them(folder, level):
    """As each packs in its own way: a distribution's copy has other sums than the published."""
    contents = {name: PARTS[f"parts/{name}"] for name in SINGLE.members}
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, level))
    assert dict(files.read_members(SINGLE)) == contents
    (folder / "one.bin.gz").unlink()
    assert files.missing_files(SINGLE) == [folder / "one.bin.gz"]
    (folder / "one.bin").write_bytes(contents["one.bin"])
    assert dict(files.read_members(SINGLE)) == contents


def test_damage_in_a_gzip_file(folder):
    (folder / "two.bin").write_bytes(PARTS["parts/two.bin"])
    path = folder / "one.bin.gz"
    whole = gzip.compress(PARTS["parts/one.bin"])
    for broken in (b"", b"garbage", whole[: len(whole) // 2], whole[:-4], gzip.compress(b"one")):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=rf"{path} is damaged.*data fetch toy"):
            dict(files.read_members(SINGLE))


def test_files_of_the_system_are_found(folder, tmp_path):
    system = tmp_path / "system"
    system.mkdir()
    for name, content in PARTS.items():
        (system / f"{name[6:]}.gz").write_bytes(gzip.compress(content))
    there = dataclasses.replace(SINGLE, elsewhere=(str(system),))
    assert files.missing_files(there) == []
    assert len(dict(files.read_members(there))) == 2
    assert [path.parent for path in files.found_files(there)] == [system, system]


def test_files_of_unknown_sums_are_taken_from_the_right_archive_only(folder):
    unsummed = dict.fromkeys(PARTS)
    path = folder / "parts.tar.gz"
    for name, content in PARTS.items():
        (folder / name[6:]).write_bytes(content)
    pack(path, PARTS)
    right = md5(path.read_bytes())
    archive = dataclasses.replace(PACKED, md5={path.name: right}, members=unsummed, repacked=())
    assert dict(files.read_members(archive)) == PARTS
    pack(path, PARTS | {"parts/two.bin": b"2" * 69})
    with pytest.raises(InputError, match=f"{path} is damaged: its md5 is .*should be {right}"):
        dict(files.read_members(archive))
    path.unlink()
    assert files.missing_files(archive) == [path]
    with pytest.raises(InputError, match=f"needs {path}, which does not exist: set"):
        dict(files.read_members(archive))


def test_text_is_checked_by_its_lines(folder):
    table = files.FileSet(
        "toy",
        md5={"table.csv": md5(b"1,2\n3,4")},
        members={"table.csv": md5(b"1,2\n3,4")},
        source="from the moon, where it is called table.data",
        also={"table.csv": "table.data"},
        text=True,
    )
    with pytest.raises(InputError, match=rf"put table\.csv into {folder} \(from the moon"):
        list(files.read_members(table))
    for content in (b"1,2\n3,4", b"1,2\r\n3,4\r\n\r\n"):
        (folder / "table.data").write_bytes(content)
        assert dict(files.read_members(table)) == {"table.csv": content}
    (folder / "table.data").write_bytes(b"1,2\n3,5")
    with pytest.raises(InputError, match="is damaged"):
        list(files.read_members(table))


def test_a_pickle_is_never_opened(folder):
    """CIFAR's other version has the archive's form, but none of the members."""
    path = folder / "parts.tar.gz"
    pack(path, {"cifar-10-batches-py/data_batch_1": b"cos\nsystem\n(S'exit 1'\ntR."})
    with pytest.raises(InputError, match=r"has no parts/one\.bin: delete it"):
        list(files.read_members(PACKED))


def test_an_xz_archive_of_something_else(folder):
    (folder / "parts.tar.xz").write_bytes(lzma.compress(b"no archive"))
    with pytest.raises(InputError, match="is damaged"):
        list(files.read_members(PACKED))
