import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planimeter import InputError
from planimeter.analysis import Claim, PaperValue, Result, judge
from planimeter.analysis.claim import _outcome


def claim(direction="above", **changes):
    settings = {"x": "m", "y": "error"}
    return Claim("it rises", "correlation", settings, direction, **changes)


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_the_interval_alone_decides(one, other, null):
    low, high = sorted((one, other))
    result = Result((low + high) / 2, low, high, 10)
    above = _outcome(claim("above", null=null), result)
    below = _outcome(claim("below", null=null), result)
    assert (above == "supported") == (below == "contradicted") == (low > null)
    assert (above == "contradicted") == (below == "supported") == (high < null)
    within = _outcome(claim("within", bounds=(-0.5, 0.5)), result)
    assert (within == "supported") == (low >= -0.5 and high <= 0.5)
    assert (within == "contradicted") == (high < -0.5 or low > 0.5)


def test_a_population_supports_contradicts_or_leaves_open(population):
    rng = np.random.default_rng(0)
    x = np.arange(20.0)
    whole = population(
        {"m": x}, {"error": x + rng.normal(size=20), "noise": rng.normal(size=20)},
        {"net": ["big"] * 18 + ["small"] * 2},
    )  # fmt: skip
    paper = PaperValue(0.98, "Fig. 3", "data")
    verdict = judge(claim(null=0.9, paper=paper), whole)
    assert verdict.outcome == "supported"
    assert "the paper: 0.98 (Fig. 3) [data]" in str(verdict)
    assert judge(claim("below"), whole).outcome == "contradicted"
    noise = Claim("it rises", "correlation", {"x": "m", "y": "noise"}, "above")
    assert judge(noise, whole).outcome == "undecided"
    few = judge(claim(where={"net": "small"}), whole)
    assert (few.outcome, few.result.n) == ("undecided", 2)
    none = judge(claim(where={"net": "tiny"}), whole)
    assert (none.outcome, none.result) == ("undecided", None)
    assert "no member has" in str(none)
    with pytest.raises(InputError, match="no column 'error'"):
        judge(claim(), population({"m": x}))


def test_ratios_are_compared_with_one(population):
    whole = population(
        {"q": np.r_[np.full(3, 8.0), np.full(3, 1.0)] * np.exp(0.01 * np.arange(6))},
        factors={"wd": [1, 1, 1, 0, 0, 0]},
    )
    settings = {"column": "q", "condition": {"wd": 1}, "against": {"wd": 0}, "ratio": True}
    assert judge(Claim("× 8", "contrast", settings, "above"), whole).outcome == "supported"
    low = judge(Claim("× 10 at least", "contrast", settings, "above", null=10), whole)
    assert low.outcome == "contradicted"


def test_what_is_wrong_is_named():
    with pytest.raises(InputError, match=r"no analysis 'corelation'.*'correlation'"):
        Claim("s", "corelation", {}, "above")
    with pytest.raises(InputError, match="no setting 'z'"):
        Claim("s", "correlation", {"x": "a", "y": "b", "z": "c"}, "above")
    with pytest.raises(InputError, match="needs 'y'"):
        Claim("s", "correlation", {"x": "a"}, "above")
    with pytest.raises(InputError, match="direction 'up'"):
        claim("up")
    with pytest.raises(InputError, match="bounds where"):
        claim("within")
    with pytest.raises(InputError, match="not in order"):
        claim("within", bounds=(1, 0))
    with pytest.raises(InputError, match="provenance 'memory'"):
        PaperValue(1, "Fig. 1", "memory")
    with pytest.raises(InputError, match="between 0 and 1"):
        claim(confidence=95)
