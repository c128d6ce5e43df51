import json

import pytest
from typer.testing import CliRunner

from planimeter.cli.app import app

runner = CliRunner()


@pytest.fixture
def network(tmp_path, monkeypatch):
    (tmp_path / "audited.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "audited:make"


def test_a_table_with_verdicts_and_what_to_report(network, tmp_path):
    arguments = ["--data", "digits", "--rows", "60", "--measures", "trace,adaptive_eigenvalue"]
    done = runner.invoke(app, ["audit", network, *arguments, "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert "Report instead: adaptive_eigenvalue" in " ".join(done.output.split())
    assert (tmp_path / "a.png").stat().st_size > 5000
    as_json = runner.invoke(app, ["audit", network, *arguments, "--json"])
    record = json.loads(as_json.stdout)
    assert record["verdicts"] == {"trace": "changes", "adaptive_eigenvalue": "invariant"}
    assert record["rows"] == 60


def test_unknown_measures_suggest_the_nearest(network):
    done = runner.invoke(app, ["audit", network, "--rows", "20", "--measures", "adaptive_eigen"])
    assert "did you mean adaptive_eigenvalue" in str(done.exception)
