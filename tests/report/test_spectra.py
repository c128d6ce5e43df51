from planimeter.curvature import spectral_summary
from planimeter.report.spectra import save_density_figure


def test_the_figure_is_drawn(small_landscape, tmp_path):
    densities = {
        op.name: spectral_summary(op, k=3, steps=10).density
        for op in (small_landscape.hessian(), small_landscape.gauss_newton())
    }
    save_density_figure(densities, tmp_path / "new" / "densities.png", "a small net")
    assert (tmp_path / "new" / "densities.png").read_bytes()[:4] == b"\x89PNG"
