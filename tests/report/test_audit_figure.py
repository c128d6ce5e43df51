import pytest

from planimeter.report.audit import percent


@pytest.mark.parametrize(
    ("relative", "error", "text"),
    [
        (0.0, 0.0, "0"), (2e-4, 0.0, "0"), (0.123, 0.0, "+12 %"), (-0.033, 0.004, "-3.3 ± 0.4 %"),
        (1.5, 0.4, "+150 ± 40 %"), (66.7, 3.0, "×68 ± 3"), (-0.96, 0.001, "×0.04"),
        (float("inf"), 0.0, "from 0"), (float("nan"), 0.0, "not finite"),
    ],
)  # fmt: skip
def test_changes_in_words(relative, error, text):
    assert percent(relative, error) == text
