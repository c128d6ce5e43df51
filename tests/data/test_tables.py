import dataclasses

import pytest

from planimeter.data.files import FileSet
from planimeter.data.tables import Table, load_table
from planimeter.errors import InputError

from .test_files import md5


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Makes a table of some text, with an identifier and two columns."""
    monkeypatch.setenv("PLANIMETER_DATA", str(tmp_path))

    def make(text):
        (tmp_path / "t.csv").write_text(text)
        files = FileSet("t", {}, {"t.csv": md5(text.strip().encode())}, folder=".", text=True)
        return Table(files, "bad", "good", 2, skipped=1)

    return make


def test_rows_with_a_missing_value_are_left_out(table):
    data = load_table(table("1,0.5,-2,bad\n2,?,3,good\n3,1e3,0,good\n"))
    assert data.inputs[:].tolist() == [[0.5, -2.0], [1000.0, 0.0]]
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize("row", ["1,2,good", "1,2,3,4,good", "1,2,3,fine"])
def test_a_row_of_another_form_is_named(table, row):
    with pytest.raises(InputError, match=r"t\.csv has a row that is not of its form"):
        load_table(table(f"1,0.5,-2,bad\n{row}\n"))


def test_a_changed_value_is_noticed(table):
    made = table("1,0.5,-2,bad\n")
    other = dataclasses.replace(made, files=dataclasses.replace(made.files, members={"t.csv": "0"}))
    with pytest.raises(InputError, match="is damaged"):
        load_table(other)
