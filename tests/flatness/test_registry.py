from pathlib import Path

import pytest
import torch

from planimeter.errors import InputError
from planimeter.flatness import MEASURES, all_names, measure


def test_every_measure_describes_itself():
    for name, m in MEASURES.items():
        assert m.name == name
        assert m.formula
        assert m.reference
        assert m.orientation in {"sharpness", "flatness", "none"}


def test_measures_agree_with_the_dense_hessian(small_landscape):
    dense = small_landscape.hessian().dense()
    missing = {}
    results = measure(small_landscape, refused=missing.__setitem__)
    assert list(results) == [name for name in all_names() if name not in missing]
    assert len(results) > 0.7 * len(MEASURES)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert results["top_eigenvalue"].value == pytest.approx(top, rel=1e-4)
    for name, exact in (("trace", dense.trace()), ("frobenius_norm", dense.norm())):
        found = results[name]
        assert abs(found.value - float(exact)) <= 3 * found.stderr + 1e-9


def test_settings_reach_the_measure(small_landscape):
    results = measure(small_landscape, ["trace"], settings={"trace": {"probes": 3}})
    assert results["trace"].products == 3


def test_one_name_may_be_a_string(small_landscape):
    assert measure(small_landscape, "l2_norm") == measure(small_landscape, ["l2_norm"])


def test_an_unknown_name_is_refused(small_landscape):
    with pytest.raises(InputError, match="no measure 'tracee'; did you mean trace"):
        measure(small_landscape, ["tracee"])
    with pytest.raises(InputError, match="no measure 'qqq'; there are spectral_norm"):
        measure(small_landscape, ["qqq"])


def test_the_docs_have_a_line_for_every_measure():
    text = (Path(__file__).parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
    for name in MEASURES:
        assert f"| `{name.removeprefix('gauss_newton_')}` |" in text
