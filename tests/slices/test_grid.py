import json

import numpy as np
import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.slices import (
    Direction,
    eigenvector_directions,
    random_direction,
    slice_1d,
    slice_2d,
)

DISTANCES = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.fixture
def linear() -> LossLandscape:
    """A squared loss of a linear model: L is a quadratic function of theta."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(23, 4, generator=generator).double()
    targets = torch.randn(23, 2, generator=generator).double()
    torch.manual_seed(0)
    return LossLandscape(nn.Linear(4, 2).double(), nn.functional.mse_loss, (inputs, targets))


class Counted:
    """Progress that is interrupted after some points."""

    def __init__(self, stop):
        self.stop, self.points = stop, 0

    def __call__(self, done, total):
        self.points += 1
        if self.points == self.stop:
            raise KeyboardInterrupt


def test_a_quadratic_loss_gives_exact_parabolas(linear):
    d, e = random_direction(linear, 0, "none"), random_direction(linear, 1, "none")
    hessian, gradient, loss = linear.hessian().dense(), linear.gradient(), linear.loss()

    def exact(step):
        return float(loss + gradient @ step + step @ hessian @ step / 2)

    line = slice_1d(linear, d, DISTANCES)
    expected = [exact(a * d.vector) for a in DISTANCES]
    np.testing.assert_allclose(line.losses, expected, rtol=1e-12)
    other = torch.tensor([-0.5, 0.0, 2.0], dtype=torch.float64)
    plane = slice_2d(linear, d, e, DISTANCES, other)
    expected = [[exact(a * d.vector + b * e.vector) for b in other] for a in DISTANCES]
    np.testing.assert_allclose(plane.losses, expected, rtol=1e-12)
    assert plane.losses.shape == (5, 3)
    assert plane.accuracies is None
    assert line.quadratic is None


def test_the_quadratic_model_of_a_quadratic_loss_is_the_loss(linear):
    one, two = eigenvector_directions(linear, 2)
    line = slice_1d(linear, one, DISTANCES)
    torch.testing.assert_close(line.quadratic(DISTANCES), line.losses)
    plane = slice_2d(linear, one, two, DISTANCES)
    grid = torch.meshgrid(DISTANCES, DISTANCES, indexing="ij")
    torch.testing.assert_close(plane.quadratic(*grid), plane.losses)
    # Directions that are no orthogonal pair have a curvature between them.
    slanted = Direction(one.vector * 2, curvature=4 * one.curvature)
    mixed = slice_2d(
        linear, Direction(one.vector, curvature=one.curvature),
        Direction(two.vector, curvature=two.curvature), DISTANCES
    )  # fmt: skip
    torch.testing.assert_close(mixed.losses, plane.losses)
    torch.testing.assert_close(
        slice_1d(linear, slanted, DISTANCES).quadratic(DISTANCES), line.quadratic(2 * DISTANCES)
    )


def test_the_curvature_along_an_eigenvector_is_the_eigenvalue(small_landscape):
    (direction,) = eigenvector_directions(small_landscape, 1)
    h = 1e-4  # no kink of a ReLU is this near; the error is of order h²
    down, here, up = slice_1d(small_landscape, direction, [-h, 0.0, h]).losses.tolist()
    assert (up - 2 * here + down) / h**2 == pytest.approx(direction.curvature, rel=1e-4)
    model = slice_1d(small_landscape, direction, [0.0]).quadratic
    assert (up - down) / (2 * h) == pytest.approx(model.slopes[0], rel=1e-4)


def test_loss_and_accuracy_are_those_of_the_landscape(small_landscape):
    direction = random_direction(small_landscape)
    result = slice_1d(small_landscape, direction, DISTANCES)
    for a, loss, accuracy in zip(DISTANCES, result.losses, result.accuracies, strict=True):
        there = small_landscape.at(small_landscape.theta + a * direction.vector)
        assert float(loss) == pytest.approx(there.loss(), rel=1e-14)
        assert float(accuracy) == there.accuracy()
    assert (result.loss, result.accuracy) == (small_landscape.loss(), small_landscape.accuracy())
    assert result.minimum[1] == float(result.losses.min())


def test_batches_do_not_change_a_slice(small_net, small_data):
    inputs, targets = small_data
    loader = [(inputs[:30], targets[:30]), (inputs[30:], targets[30:])]
    loss = nn.functional.cross_entropy
    landscapes = [
        LossLandscape(small_net, loss, small_data),
        LossLandscape(small_net, loss, small_data, batch_size=7),
        LossLandscape(small_net, loss, loader),
    ]
    slices = [slice_1d(one, random_direction(one), DISTANCES) for one in landscapes]
    for other in slices[1:]:
        torch.testing.assert_close(other.losses, slices[0].losses, rtol=1e-13, atol=0)
        assert torch.equal(other.accuracies, slices[0].accuracies)


def test_the_network_and_its_buffers_stay_as_they_were(small_data):
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    landscape = LossLandscape(net, nn.functional.cross_entropy, small_data)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    slice_1d(landscape, random_direction(landscape), DISTANCES)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_losses_that_are_not_finite_are_kept(small_landscape):
    direction = random_direction(small_landscape)
    result = slice_1d(small_landscape, direction, [0.0, 1e160, 1e308])
    assert torch.isfinite(result.losses[0])
    assert not torch.isfinite(result.losses[2])
    assert torch.isnan(result.accuracies[2])
    assert result.minimum == ((0.0,), float(result.losses[0]))
    assert "not finite" in str(result)
    assert result.complete


@pytest.mark.parametrize("distances", [[0.5, 1.0], [-2.0, 0.0, 2.0], [1.0]])
@pytest.mark.parametrize("stop", [1, 3, None])
def test_nothing_is_called_lowest_above_the_loss_at_theta(linear, distances, stop):
    """Theta is at a minimum here, whether or not it is on the part of the grid that was done."""
    gradient, hessian = linear.gradient(), linear.hessian().dense()
    linear = linear.at(linear.theta - torch.linalg.pinv(hessian) @ gradient)
    d, e = random_direction(linear, 0), random_direction(linear, 1)
    result = slice_2d(linear, d, e, distances, progress=Counted(stop))
    assert result.minimum == ((0.0, 0.0), result.loss)
    assert result.loss <= float(result.losses[torch.isfinite(result.losses)].min())
    named = "lowest" if result.complete else "lowest so far"
    assert f"{named} {result.loss:.6g} at 0, 0" in str(result)
    assert result.complete == ("INCOMPLETE" not in str(result))


@pytest.mark.parametrize("stop", [1, 7, 12])
def test_an_interrupted_grid_goes_on_where_it_was(small_landscape, tmp_path, stop):
    d, e = random_direction(small_landscape, 0), random_direction(small_landscape, 1)
    whole = slice_2d(small_landscape, d, e, DISTANCES)
    out = tmp_path / "new" / "grid.npz"
    part = slice_2d(small_landscape, d, e, DISTANCES, out=out, progress=Counted(stop))
    assert (part.complete, part.points) == (False, stop)
    done = part.losses.reshape(-1)
    assert torch.equal(done[:stop], whole.losses.reshape(-1)[:stop])
    assert done[stop:].isnan().all()
    rest = Counted(None)
    resumed = slice_2d(small_landscape, d, e, DISTANCES, out=out, progress=rest)
    assert torch.equal(resumed.losses, whole.losses)
    assert torch.equal(resumed.accuracies, whole.accuracies)
    assert resumed.complete
    assert rest.points == 25 - 5 * (stop // 5)
    again = Counted(1)  # nothing is left to do, so nothing to interrupt
    finished = slice_2d(small_landscape, d, e, DISTANCES, out=out, progress=again)
    assert (again.points, finished.complete) == (0, True)
    assert [p.name for p in out.parent.iterdir()] == ["grid.npz"]


def test_a_line_is_resumed_by_points(small_landscape, tmp_path):
    d, out = random_direction(small_landscape), tmp_path / "line.npz"
    slice_1d(small_landscape, d, DISTANCES, out=out, progress=Counted(3))
    rest = Counted(None)
    resumed = slice_1d(small_landscape, d, DISTANCES, out=out, progress=rest)
    assert rest.points == 2
    assert torch.equal(resumed.losses, slice_1d(small_landscape, d, DISTANCES).losses)


def test_a_file_of_another_slice_is_refused(small_landscape, small_net, small_data, tmp_path):
    d, out = random_direction(small_landscape), tmp_path / "line.npz"
    slice_1d(small_landscape, d, DISTANCES, out=out)
    # What rounding does to a direction that is computed again is forgiven.
    near = Direction(d.vector * (1 + 1e-9), d.name)
    assert slice_1d(small_landscape, near, DISTANCES, out=out).complete
    with pytest.raises(InputError, match="the distances are others"):
        slice_1d(small_landscape, d, DISTANCES[:3], out=out)
    with pytest.raises(InputError, match="the distances are others"):
        slice_2d(small_landscape, d, random_direction(small_landscape, 1), DISTANCES, out=out)
    with pytest.raises(InputError, match="the directions are others"):
        slice_1d(small_landscape, random_direction(small_landscape, 1), DISTANCES, out=out)
    with pytest.raises(InputError, match="theta is "):
        slice_1d(small_landscape.at(0.5 * small_landscape.theta), d, DISTANCES, out=out)
    inputs, targets = small_data
    other = LossLandscape(small_net, nn.functional.cross_entropy, (inputs, targets.flip(0)))
    with pytest.raises(InputError, match=r"the loss at theta is .* remove it, or give another"):
        slice_1d(other, d, DISTANCES, out=out)
    out.write_bytes(b"PK broken")
    with pytest.raises(InputError, match="no slice that could be read"):
        slice_1d(small_landscape, d, DISTANCES, out=out)
    with pytest.raises(InputError, match=r"kept in an \.npz file"):
        slice_1d(small_landscape, d, DISTANCES, out=tmp_path / "line.csv")


def test_the_record_is_json(small_landscape):
    one, two = eigenvector_directions(small_landscape, 2)
    result = slice_2d(small_landscape, one, two, DISTANCES[:2])
    record = json.loads(json.dumps(result.as_dict()))
    assert record["losses"] == result.losses.tolist()
    assert record["quadratic"]["curvature"][1][1] == two.curvature
    assert record["settings"]["loss_function"] == "cross_entropy"


def test_wrong_input(small_landscape):
    d = random_direction(small_landscape)
    with pytest.raises(InputError, match="at least one"):
        slice_1d(small_landscape, d, [])
    with pytest.raises(InputError, match="distances must be finite, got nan"):
        slice_1d(small_landscape, d, [0.0, float("nan")])
    with pytest.raises(InputError, match=r"has shape \(3,\), the model 57 parameters"):
        slice_1d(small_landscape, torch.ones(3), DISTANCES)
    with pytest.raises(InputError, match="is zero, or not finite"):
        slice_1d(small_landscape, torch.zeros(57), DISTANCES)
    with pytest.raises(InputError, match="are parallel"):
        slice_2d(small_landscape, d, -3 * d.vector, DISTANCES)
