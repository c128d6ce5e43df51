import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter import Estimate, InputError
from planimeter.analysis import Column, Population, TooFewError


@pytest.fixture
def three():
    rows = [
        {"net": "a", "optimiser": "sgd", "wd": 0.0, "error": 0.1, "trace": Estimate(3.0, 0.2)},
        {"net": "b", "optimiser": "adam", "wd": 1e-3, "error": 0.2, "trace": Estimate(4.0, 0.3)},
        {"net": "c", "optimiser": "sgd", "wd": 1e-3, "error": None, "trace": Estimate(5.0)},
    ]
    return Population.from_rows(
        rows, factors=("optimiser", "wd"), outcomes=("error",), member="net"
    )


def test_rows_become_columns_with_errors(three):
    assert three.members == ("a", "b", "c")
    assert list(three.column("trace").errors) == [0.2, 0.3, 0.0]
    assert np.isnan(three.column("error").values[2])
    assert three.levels("optimiser") == ["sgd", "adam"]
    assert list(three.column("wd").values) == [0.0, 1e-3, 1e-3]
    assert "population of 3" in str(three)


def test_parts_keep_what_belongs_together(three):
    assert three.where(optimiser="sgd").members == ("a", "c")
    assert three.where(optimiser=["sgd", "adam"], wd=1e-3).members == ("b", "c")
    assert three.finite("error").members == ("a", "b")
    parts = three.by("wd", "optimiser")
    assert {key: p.members for key, p in parts.items()} == {
        (0.0, "sgd"): ("a",), (1e-3, "adam"): ("b",), (1e-3, "sgd"): ("c",),
    }  # fmt: skip
    scaled = three.with_quantity("scaled", lambda trace: trace * 2)
    assert list(scaled.column("scaled").values) == [6, 8, 10]
    assert list(scaled.column("scaled").errors) == [0.4, 0.6, 0]


def test_a_table_comes_back_as_it_was(three, tmp_path):
    three.to_csv(tmp_path / "nets.csv")
    again = Population.from_table(
        tmp_path / "nets.csv", factors=("optimiser", "wd"), outcomes=("error",), member="member"
    )
    assert again.to_rows()[0] == three.to_rows()[0]
    for name in ("error", "trace"):
        np.testing.assert_equal(vars(again.column(name)), vars(three.column(name)))


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(0, 1e3)), min_size=1, max_size=20))
def test_numbers_survive_a_csv_file(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("csv") / "q.csv"
    column = Column(*np.array(pairs).T)
    Population(tuple(str(i) for i in range(len(pairs))), quantities={"q": column}).to_csv(path)
    again = Population.from_table(path, member="member").column("q")
    np.testing.assert_equal(vars(again), vars(column))


def test_what_is_wrong_is_named(three, tmp_path):
    with pytest.raises(InputError, match=r"no column 'trac'.*'trace'"):
        three.column("trac")
    with pytest.raises(InputError, match="no factor 'trace'"):
        three.factor("trace")
    with pytest.raises(InputError, match=r"'optimiser' has values that are no numbers.*sgd"):
        three.column("optimiser")
    with pytest.raises(TooFewError, match=r"no member has.*adam.*sgd"):
        three.where(optimiser="padam")
    column = Column(np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="'x' is a factor, outcome or quantity twice"):
        Population(("a",), {"x": np.zeros(1)}, {}, {"x": column})
    with pytest.raises(InputError, match=r"shape \(2,\), the population 1"):
        Population(("a",), {"x": np.zeros(2)})
    with pytest.raises(InputError, match="negative"):
        Population(("a",), quantities={"x": Column(np.zeros(1), -np.ones(1))})
    (tmp_path / "bad.csv").write_text("net,error\na,0.1\nb\n")
    with pytest.raises(InputError, match="line 3"):
        Population.from_table(tmp_path / "bad.csv", outcomes=("error",))
    (tmp_path / "word.csv").write_text("net,error\na,low\n")
    with pytest.raises(InputError, match="'error' holds 'low'"):
        Population.from_table(tmp_path / "word.csv", outcomes=("error",))
    with pytest.raises(InputError, match="no table"):
        Population.from_table(tmp_path / "none.csv")
