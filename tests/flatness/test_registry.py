import pytest
import torch

from planimeter.errors import InputError
from planimeter.flatness import MEASURES, measure


def test_every_measure_describes_itself():
    for name, m in MEASURES.items():
        assert m.name == name
        assert m.formula
        assert m.reference
        assert m.orientation in {"sharpness", "flatness"}


def test_measures_agree_with_the_dense_hessian(small_landscape):
    dense = small_landscape.hessian().dense()
    results = measure(small_landscape)
    assert set(results) == set(MEASURES)
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert results["top_eigenvalue"].value == pytest.approx(top, rel=1e-4)
    assert results["trace"].value == pytest.approx(float(dense.trace()), rel=1e-10)
    assert results["frobenius_norm"].value == pytest.approx(float(dense.norm()), rel=1e-10)


def test_settings_reach_the_measure(small_landscape):
    results = measure(small_landscape, ["trace"], settings={"trace": {"probes": 3}})
    assert results["trace"].products == 3


def test_an_unknown_name_is_refused(small_landscape):
    with pytest.raises(InputError, match="no measure 'tracee'"):
        measure(small_landscape, ["tracee"])
