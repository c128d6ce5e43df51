"""`planimeter slice` as a user runs it."""

import json
import re
import sys

import pytest
import torch
from typer.testing import CliRunner

from planimeter.cli import app, main
from planimeter.models.fully_connected import fully_connected


@pytest.fixture
def planimeter(monkeypatch, capsys, tmp_path):
    """Runs the command in a user's folder; (exit code, standard output, standard error)."""
    (tmp_path / "slicednets.py").write_text(
        "from planimeter.models.fully_connected import fully_connected\n"
        "def fcn():\n    return fully_connected(64, [10])\n"
        "def ten():\n    return fully_connected(64, [10], 10, seed=3)\n"
    )
    torch.save(fully_connected(64, [10], seed=3).state_dict(), tmp_path / "good.pt")

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["planimeter", *arguments])
        monkeypatch.setattr(sys, "path", [p for p in sys.path if "pytest-of" not in p])
        sys.modules.pop("slicednets", None)
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, " ".join(told.err.split())

    return run


FCN = ["slice", "slicednets:fcn", "--checkpoint", "good.pt", "--rows", "60"]


def test_help_has_an_example():
    shown = CliRunner().invoke(app, ["slice", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert re.search(r"Example:\s+planimeter slice", shown.output)


def test_a_line(planimeter, tmp_path):
    code, text, told = planimeter(*FCN, "--points", "5", "--plot", "line.png", "--json")
    content = json.loads(text)
    assert code == 0, told
    assert "wrote line.png" in told
    assert (tmp_path / "line.png").stat().st_size > 1000
    assert content["loss_function"] == "binary_cross_entropy"
    found = content["slice"]
    assert found["distances"] == [[-1.0, -0.5, 0.0, 0.5, 1.0]]
    assert found["losses"][2] == found["loss"]
    assert found["quadratic"] is None
    assert planimeter(*FCN, "--points", "5", "--json", "--seed", "1")[1] != text
    code, text, _ = planimeter(*FCN, "--points", "5")
    assert code == 0
    assert "accuracy (%)" in text
    assert "lowest" in text


def test_along_an_eigenvector(planimeter):
    arguments = ["--along", "eigenvectors", "--points", "3", "--radius", "1e-4", "--float64"]
    # No kink of a ReLU is this near; at 1e-3 one is, and the difference is off by 2 %.
    found = json.loads(planimeter(*FCN, *arguments, "--json")[1])["slice"]
    down, here, up = found["losses"]
    ((curvature,),) = found["quadratic"]["curvature"]
    assert (up - 2 * here + down) / 1e-8 == pytest.approx(curvature, rel=1e-5)
    assert "quadratic model" in planimeter(*FCN, *arguments)[1]


def test_a_plane_that_is_interrupted_goes_on(planimeter, tmp_path, monkeypatch):
    from planimeter.slices import grid as slices

    plane = ["--two", "--points", "4", "--out", "grid.npz", "--plot", "plane.html", "--json"]
    whole = json.loads(planimeter(*FCN, *plane[:3], "--json")[1])["slice"]
    evaluated, calls = slices._evaluated, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return evaluated(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(slices, "_evaluated", interrupted)
        code, text, told = planimeter(*FCN, *plane)
    assert code == 130
    assert "interrupted: 6 of 16 points; whole rows are in grid.npz, and the same" in told
    assert json.loads(text)["slice"]["complete"] is False
    code, text, _ = planimeter(*FCN, *plane)
    assert code == 0
    assert json.loads(text)["slice"]["losses"] == whole["losses"]
    assert (tmp_path / "plane.html").stat().st_size > 1000
    code, _, told = planimeter(*FCN, *plane, "--radius", "2")
    assert code == 2
    assert "grid.npz holds another slice (the distances are others)" in told
    assert "16 points along" not in planimeter(*FCN, "--points", "3")[1]
    assert "4×4 points along filter-normalised" in planimeter(*FCN, *plane[:-1])[1]


def test_several_classes_and_other_normalisations(planimeter):
    for along in ("layer", "none"):
        call = ["slice", "slicednets:ten", "--rows", "50", "--points", "3", "--along", along]
        content = json.loads(planimeter(*call, "--json")[1])
        assert content["loss_function"] == "cross_entropy"
        assert content["along"] == along


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--along", "rows"], "no directions 'rows'; there are filter, layer, none, eigenvectors"),
        (["--plot", "a.gif"], "figures are written as .png, .pdf, .svg or .html, got a.gif"),
        (["--radius", "-1"], "radius must be positive and finite, got -1"),
        (["--radius", "inf"], "radius must be positive and finite, got inf"),
        (["--points", "1"], "Invalid value for '--points'"),
        (["--out", "a.csv"], "a slice is kept in an .npz file, got a.csv"),
        (["--loss", "hinge"], "no loss 'hinge'"),
        (["--data", "mnits"], "no data set 'mnits'"),
        (["--checkpoint", "none.pt"], "--checkpoint is given 2 times"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(planimeter, arguments, sentence):
    code, text, told = planimeter(*FCN, *arguments)
    assert code == 2
    assert sentence in told
    assert text == ""


def test_a_checkpoint_that_is_not_there_is_named(planimeter):
    code, _, told = planimeter("slice", "slicednets:ten", "--checkpoint", "none.pt")
    assert code == 2
    assert "no checkpoint at none.pt" in told
