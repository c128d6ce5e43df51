from pathlib import Path

import numpy as np
import pytest
import torch

from planimeter.curvature import trace
from planimeter.errors import InputError
from planimeter.flatness import MEASURES, all_names, measure, measure_layers
from planimeter.flatness.registry import check_settings
from planimeter.landscape import LossLandscape
from planimeter.symmetry import audit


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


def trained(rows=40, width=14, dtype=torch.float64):
    """A network that fits its rows, with more parameters than any measure has probes."""
    torch.manual_seed(3)
    inputs = torch.randn(rows, 5, dtype=dtype)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    net = torch.nn.Sequential(
        torch.nn.Linear(5, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)
    ).to(dtype)
    loss = torch.nn.functional.cross_entropy
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(80):
        optimiser.zero_grad()
        loss(net(inputs), labels).backward()
        optimiser.step()
    return LossLandscape(net, loss, (inputs, labels))


FEWER = {"log_product_top_k": {"k": 5}, "effective_dimension": {"k": 5}, "trace": {"probes": 60}}


def digits_of(estimate):
    return estimate.value, estimate.stderr, estimate.method, estimate.seed, estimate.products


def test_a_value_does_not_depend_on_what_else_is_asked_for():
    landscape = trained()
    together = measure(landscape, settings=FEWER, seed=7, refused=lambda *_: None)
    assert len(together) > 0.9 * len(all_names())
    backwards = measure(landscape, [*together][::-1], settings=FEWER, seed=7)
    for name, found in together.items():
        alone = measure(landscape, name, settings=FEWER, seed=7)[name]
        assert digits_of(alone) == digits_of(found) == digits_of(backwards[name]), name


def test_what_measures_share_is_of_their_own_seed_and_settings():
    landscape = trained()
    names = ["log_product_top_k", "top_eigenvalue", "trace", "frobenius_norm"]
    settings = {
        "log_product_top_k": {"k": 5, "seed": 0}, "top_eigenvalue": {"seed": 7},
        "trace": {"seed": 1, "probes": 30}, "frobenius_norm": {"seed": 2, "probes": 30},
    }  # fmt: skip
    together = measure(landscape, names, settings=settings)
    assert [found.seed for found in together.values()] == [0, 7, 1, 2]
    for name in names:
        alone = measure(landscape, name, settings=settings)[name]
        assert digits_of(alone) == digits_of(together[name])
    direct = trace(landscape.hessian(), probes=30, seed=1)
    assert digits_of(direct) == digits_of(together["trace"])


def test_a_seed_is_stamped_where_something_was_drawn_and_only_there():
    landscape = trained()
    one, other = (
        measure(landscape, settings=FEWER, seed=seed, refused=lambda *_: None) for seed in (7, 8)
    )
    drawn = {name for name, found in one.items() if found.seed is not None}
    assert {"top_eigenvalue", "trace", "effective_dimension", "keskar_sharpness"} <= drawn
    assert not drawn & {"l2_norm", "path_norm", "rank_bound", "fisher_rao_norm", "output_margin"}
    for name, found in one.items():
        assert (found.seed, other[name].seed) in {(None, None), (7, 8)}
        if name not in drawn:
            assert found.value == other[name].value, name


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trace": {"prbes": 3}}, r"no setting of trace 'prbes'; .*did you mean 'probes'\?"),
        ({"trace": {"probes": "many"}}, "trace.probes must be a whole number, got 'many'"),
        ({"trace": {"probes": 2.5}}, "trace.probes must be a whole number, got 2.5"),
        ({"trace": {"probes": True}}, "trace.probes must be a whole number, got True"),
        ({"trace": {"probes": None}}, "trace.probes must be a whole number, got None"),
        ({"trace": {"tolerance": None}}, "trace.tolerance must be a number"),
        ({"trace": {"tolerance": float("nan")}}, "trace.tolerance must be a number"),
        ({"trace": {"method": 3}}, "trace.method must be a word"),
        ({"trace": {"seed": "x"}}, "trace.seed must be a whole number"),
        ({"trace": {"progress": print}}, "no setting of trace 'progress'"),
        ({"l2_norm": {"lr": 1}}, "no setting of l2_norm 'lr'; there are seed"),
        ({"trace": 5}, r"settings of trace are values by name, such as .*, got 5"),
        ({"trace": None}, "settings of trace are values by name"),
        ({"probes": 3}, "no measure 'probes'"),
        ({"tracee": {}}, "no measure 'tracee'; did you mean trace"),
        ([1], "settings are those of each measure by its name"),
        ({"rangamani": {"horizontal": 1}}, "rangamani.horizontal must be true or false"),
        ({"gauss_newton_trace": {"matrix": "hessian"}}, "no setting of gauss_newton_trace 'matrix"),
        ({"distance_from_init": {"initial": 3}}, "must be a landscape, or parameters by name"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(small_landscape, settings, message):
    seen: list = []
    for function in (measure, measure_layers, audit):
        with pytest.raises(InputError, match=message):
            function(small_landscape, ["l2_norm"], settings=settings, progress=seen.append)
    assert not seen


def test_every_default_is_a_setting_that_is_taken(small_landscape):
    """What a signature says of a setting is what may be given."""
    for name, m in MEASURES.items():
        check_settings({name: m.settings | {"seed": 3}})
        check_settings({name: m.quick})
    check_settings({"trace": {"probes": np.int64(3), "tolerance": np.float64(0.5)}})
    check_settings({"trace": {"tolerance": 1}})
