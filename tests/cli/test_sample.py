"""`planimeter sample` as a user runs it."""

import json
import re
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from planimeter.cli import app, main


@pytest.fixture
def planimeter(monkeypatch, capsys, tmp_path):
    """Runs the command in a user's folder; (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["planimeter", "sample", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, " ".join(told.err.split())

    return run


def test_help_has_an_example():
    shown = CliRunner().invoke(app, ["sample", "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert re.search(r"Example:\s+planimeter sample", shown.output)


def test_the_constant_functions_lead(planimeter):
    code, text, told = planimeter("3-10-1", "--samples", "1e4", "--top", "3")
    assert code == 0, told
    assert "10000 samples" in text
    first = [line.split()[0] for line in text.splitlines() if re.match(r" ?[0-9a-f]{2} ", line)]
    assert set(first[:2]) == {"00", "ff"}
    assert "correlation of log P with C" in text


def test_json_and_going_on_from_a_file(planimeter, tmp_path):
    settings = ("7-40-40-1", "--out", "counts.npz", "--json", "--top", "4")
    code, text, told = planimeter(*settings, "--samples", "5000")
    assert code == 0, told
    assert json.loads(text)["samples"] == 5000
    assert (tmp_path / "counts.npz").exists()
    code, text, told = planimeter(*settings, "--samples", "10000")
    content = json.loads(text)
    assert (content["samples"], len(content["functions"])) == (10000, 4)
    fresh = json.loads(planimeter("--json", "--top", "4", "--samples", "1e4")[1])
    assert content["functions"] == fresh["functions"]
    code, _, told = planimeter(*settings, "--samples", "10000", "--sigma-b", "0.2")
    assert code == 2
    assert "sigma_b is 0.1 there and 0.2 here" in told


@pytest.mark.parametrize("width", [60, 200])
def test_cells_stay_whole_in_any_terminal(planimeter, monkeypatch, width):
    arguments = ("7-9-1", "--samples", "2e4", "--top", "5")
    counts = [str(f["count"]) for f in json.loads(planimeter(*arguments, "--json")[1])["functions"]]
    monkeypatch.setattr("planimeter.cli.output.output", Console(width=width))
    text = planimeter(*arguments)[1]
    shown = [line.split()[1] for line in text.splitlines() if re.match(r" [0-9a-f]{32} ", line)]
    assert shown[:5] == counts


def test_a_file_holds_whole_batches_and_says_so(planimeter, tmp_path):
    code, _, told = planimeter("3-10-1", "--samples", "1000", "--out", "few.npz")
    assert code == 0
    assert "few.npz is not written: it holds whole batches, of 4096 samples" in told
    assert not (tmp_path / "few.npz").exists()
    code, _, told = planimeter("3-10-1", "--samples", "5000", "--out", "more.npz")
    assert "more.npz holds 4096 of the 5000 samples" in told
    assert (tmp_path / "more.npz").exists()


def test_ctrl_c_shows_what_was_counted(planimeter, monkeypatch):
    from planimeter.cli import sample as command

    original = command.sample_functions

    def stopped(*arguments, progress, **settings):
        def interrupt(stage, done, total):
            raise KeyboardInterrupt

        return original(*arguments, progress=interrupt, **settings)

    monkeypatch.setattr(command, "sample_functions", stopped)
    code, text, told = planimeter("--samples", "20000", "--out", "counts.npz")
    assert code == 130
    assert "4096 samples" in text
    assert "4096 of 20000 samples, 1000 exact counts; they are in counts.npz" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7-x-1",), "7-x-1"),
        (("7-40-2",), "one output"),
        (("20-5-1",), "20 bits"),
        (("--samples", "1.5"), "whole number"),
        (("--samples", "many"), "whole number"),
        (("--out", "counts.txt"), ".npz"),
        (("--out", "/proc/counts.npz"), "cannot write to /proc/counts.npz"),
    ],
)
def test_wrong_input_is_one_sentence(planimeter, arguments, message):
    code, _, told = planimeter(*arguments)
    assert code == 2
    assert message in told
