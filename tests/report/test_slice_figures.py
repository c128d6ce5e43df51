from dataclasses import replace

import numpy as np
import pytest
import torch

from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.report.interactive_slices import interactive_path, interactive_slice
from planimeter.report.printed_slices import printed_path, printed_slice
from planimeter.report.slice_values import contour_levels
from planimeter.report.slices import save_path_figure, save_slice_figure
from planimeter.slices import (
    eigenvector_directions,
    random_direction,
    sharpness_path,
    slice_1d,
    slice_2d,
)

DISTANCES = torch.linspace(-1, 1, 7, dtype=torch.float64)
BEGINNINGS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml", ".html": b"<"}


@pytest.fixture
def curve(small_landscape):
    return slice_1d(small_landscape, *eigenvector_directions(small_landscape, 1), DISTANCES)


@pytest.fixture
def plane(small_landscape):
    d, e = random_direction(small_landscape, 0), random_direction(small_landscape, 1)
    return slice_2d(small_landscape, d, e, DISTANCES, DISTANCES[:5])


@pytest.fixture
def path(small_landscape):
    def fading(landscape):
        return Estimate(float(landscape.theta.norm()) - 1, 50.0, converged=False)

    def negative(landscape):
        return Estimate(-1.0, float("nan"))

    with pytest.warns(UserWarning, match="changes along the path"):
        return sharpness_path(
            lambda alpha: small_landscape.at(alpha * small_landscape.theta),
            {"fading": fading, "negative": negative},
            [4.0, 1.0, 2.0],
        )


@pytest.mark.parametrize("suffix", BEGINNINGS)
@pytest.mark.parametrize("kind", ["curve", "plane", "path"])
def test_every_figure_is_written(request, tmp_path, kind, suffix):
    file = tmp_path / "new" / f"figure{suffix}"
    save = save_path_figure if kind == "path" else save_slice_figure
    save(request.getfixturevalue(kind), file, "a <small> net")
    content = file.read_bytes()
    assert content.startswith(BEGINNINGS[suffix])
    assert len(content) > 2000
    if suffix == ".html":  # nothing is fetched
        assert b"<script src" not in content
        assert b"plotly.js v" in content


def test_a_curve_shows_the_loss_its_model_and_the_accuracy(curve):
    loss_axis, accuracy_axis = printed_slice(curve).axes
    lines = {line.get_label(): line for line in loss_axis.lines}
    np.testing.assert_array_equal(lines["loss"].get_ydata(), curve.losses)
    x, y = lines["quadratic model"].get_data()
    np.testing.assert_allclose(y, curve.quadratic(torch.as_tensor(x)))
    assert lines["quadratic model"].get_linestyle() == "--"
    np.testing.assert_array_equal(accuracy_axis.lines[0].get_ydata(), 100 * curve.accuracies)
    assert loss_axis.get_ylim()[1] < 2 * float(curve.losses.max())
    names = [trace.name for trace in interactive_slice(curve).data]
    assert names == ["loss", "quadratic model", "accuracy"]


def test_unsorted_distances_are_drawn_in_order(small_landscape, curve):
    shuffled = DISTANCES[[3, 0, 6, 1, 5, 2, 4]]
    d, e = random_direction(small_landscape, 0), random_direction(small_landscape, 1)
    line = slice_1d(small_landscape, d, shuffled)
    np.testing.assert_array_equal(printed_slice(line).axes[0].lines[0].get_xdata(), DISTANCES)
    mixed = slice_2d(small_landscape, d, e, shuffled, DISTANCES[:5])
    straight = slice_2d(small_landscape, d, e, DISTANCES, DISTANCES[:5])
    surfaces = [interactive_slice(one).data[0] for one in (mixed, straight)]
    np.testing.assert_array_equal(surfaces[0].z, surfaces[1].z)
    printed_slice(mixed)


def test_the_lowest_point_is_marked(plane):
    marks = {line.get_label(): line.get_xydata() for line in printed_slice(plane).axes[0].lines}
    where, lowest = plane.minimum
    assert marks[f"lowest, {lowest:.4g}"].tolist() == [list(where)]
    assert marks[f"θ, {plane.loss:.4g}"].tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_losses_that_are_not_finite_are_drawn(curve, plane, tmp_path, bad, everywhere, suffix):
    label = {torch.inf: "∞", -torch.inf: "−∞"}.get(bad, "NaN")
    for one in (curve, plane):
        losses = torch.full_like(one.losses, bad) if everywhere else one.losses.clone()
        losses[-1] = bad
        broken = replace(one, losses=losses)
        save_slice_figure(broken, tmp_path / f"broken{suffix}")
        shown = printed_slice(broken).axes[0].get_legend_handles_labels()[1]
        assert f"loss is {label}" in shown
        assert "loss not finite" in [trace.name for trace in interactive_slice(broken).data]


def test_points_that_were_not_computed_are_no_nan(curve, plane, tmp_path):
    for one in (curve, plane):
        losses = one.losses.clone()
        losses.view(-1)[9 if losses.ndim == 2 else 3 :] = torch.nan
        part = replace(one, losses=losses, points=9 if losses.ndim == 2 else 3)
        save_slice_figure(part, tmp_path / "part.png")
        shown = printed_slice(part).axes[0].get_legend_handles_labels()[1]
        assert not any("NaN" in label for label in shown)
        assert "loss not finite" not in [trace.name for trace in interactive_slice(part).data]


@pytest.mark.parametrize(
    ("losses", "logarithmic"),
    [([0.0, 1e-3, 1e4], True), ([-1.0, 2.0], False), ([0.0, 0.0], False), ([0.3, 0.3], True),
     ([-2.0, -2.0], False), ([5e-324, 1.0], True)],
)  # fmt: skip
def test_levels_rise_and_hold_every_loss(losses, logarithmic):
    values = np.array(losses)
    levels, scale = contour_levels(values)
    assert scale == logarithmic
    assert (np.diff(levels) > 0).all()
    drawn = np.maximum(values, levels[0]) if scale else values
    assert levels[0] <= drawn.min()
    assert drawn.max() <= levels[-1]


def test_a_path_says_what_it_cannot_show(path):
    figure = printed_path(path)
    (axis,) = figure.axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert "negative (3 not positive)" in axis.get_legend_handles_labels()[1]
    assert "THE LOSS CHANGES" in axis.get_title()
    trace = interactive_path(path).data[0]
    assert list(trace.x) == [1, 2, 4]
    assert set(trace.marker.symbol) == {"circle-open"}
    assert (np.array(trace.error_y.arrayminus) < trace.y).all()


def test_wrong_input(small_landscape, plane, tmp_path):
    with pytest.raises(InputError, match=r"figures are written as \.png, .* got .*figure\.gif"):
        save_slice_figure(plane, tmp_path / "figure.gif")
    d, e = random_direction(small_landscape, 0), random_direction(small_landscape, 1)
    with pytest.raises(InputError, match="1×7 points has no contours"):
        save_slice_figure(slice_2d(small_landscape, d, e, [0.0], DISTANCES), tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"):
        save_slice_figure(plane, tmp_path / "file" / "a.png")
