from planimeter.report.table import quantities


def test_a_study_without_log_p_has_its_other_figures(small_study):
    prior = small_study.prior.model_copy(update={"noise": ()})
    study = small_study.model_copy(update={"prior": prior, "figures": ("trace",)})
    assert [q.name for q in quantities(study)] == ["trace"]
    assert quantities(small_study)[0].label == "log P(f), Heaviside (nats)"
