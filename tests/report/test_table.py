import pytest
import torch

from planimeter.report.table import drawn, quantities
from planimeter.training import OPTIMISERS, Optimiser, make_optimiser, optimiser_label


def test_a_study_without_log_p_has_its_other_figures(small_study):
    prior = small_study.prior.model_copy(update={"noise": ()})
    study = small_study.model_copy(update={"prior": prior, "figures": ("trace",)})
    assert [q.name for q in quantities(study)] == ["trace", "keskar_sharpness"]
    assert quantities(small_study)[0].label == "log P(f), Heaviside (nats)"


def test_every_measured_quantity_is_in_the_table_the_named_ones_first(small_study):
    study = small_study.model_copy(update={"figures": ("keskar_sharpness",)})
    assert [q.name for q in quantities(study)] == ["keskar_sharpness", "log_prior", "trace"]
    none = small_study.model_copy(update={"figures": ()})
    assert [q.name for q in quantities(none)] == ["log_prior", "trace", "keskar_sharpness"]
    assert drawn(none, []) == []


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_of_the_registry_has_a_label(name):
    assert optimiser_label(name) == OPTIMISERS[name].label
    assert OPTIMISERS[name].label


def test_an_optimiser_that_is_added_has_the_label_of_its_entry(monkeypatch):
    monkeypatch.setitem(OPTIMISERS, "lion", Optimiser(torch.optim.SGD, "Lion"))
    assert optimiser_label("lion") == "Lion"
    made = make_optimiser("lion", [torch.zeros(1, requires_grad=True)], lr=0.3)
    assert made.param_groups[0]["lr"] == 0.3
    assert optimiser_label("gone") == "gone"  # of a folder that a later version wrote
