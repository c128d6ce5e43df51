"""Every command says whose weights it looks at, takes them once, and takes files by their path."""

import json

import pytest
import torch
from typer.testing import CliRunner

from planimeter.cli.app import app
from planimeter.errors import InputError

runner = CliRunner()

COMMANDS = {
    "measure": ["--rows", "30", "--measures", "l2_norm"],
    "audit": ["--rows", "30", "--measures", "trace"],
    "slice": ["--rows", "30", "--points", "3"],
    "prior": ["--train", "8", "--test", "4"],
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with a network's file, and its weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "checkpointed.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 1))\n"
        "class Several(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = make()\n"
        "    def forward(self, x):\n"
        "        return self.body(x), x\n"
    )
    torch.manual_seed(5)
    layers = torch.nn.Linear(64, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    torch.save({"model_state_dict": model.state_dict(), "epoch": 3}, "trained.pt")
    torch.save(model.state_dict(), "other.pt")


def ran(command, *more):
    arguments = [command, "./checkpointed:make", "--data", "digits", *COMMANDS[command], *more]
    return runner.invoke(app, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_header_and_record_names_the_checkpoint(command, trained):
    done = ran(command, "--checkpoint", "trained.pt")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "./checkpointed:make with trained.pt on" in " ".join(done.stdout.split())
    record = json.loads(ran(command, "--checkpoint", "trained.pt", "--json").stdout)
    assert record["checkpoint"] == "trained.pt"
    assert json.loads(ran(command, "--json").stdout)["checkpoint"] is None
    assert " with " not in ran(command).stdout.partition(" on ")[0]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--checkpoint", "--data", "--seed"])
def test_an_option_that_is_given_twice_is_refused(command, option, trained):
    values = {"--checkpoint": ("trained.pt", "other.pt"), "--data": ("digits",), "--seed": "01"}
    more = [word for value in values[option] for word in (option, value)]
    done = ran(command, *more)
    assert isinstance(done.exception, InputError)
    assert f"{option} is given 2 times" in str(done.exception)


def test_a_study_refuses_it_too_and_a_flag_may_be_repeated(trained):
    done = runner.invoke(app, ["study", "run", "demo", "--workers", "1", "--workers", "2"])
    assert "--workers is given 2 times" in str(done.exception)
    assert runner.invoke(app, ["study", "list", "--json", "--json"]).exit_code == 0


def test_the_weights_before_training_are_named(trained):
    arguments = ["--checkpoint", "trained.pt", "--initial", "other.pt"]
    assert ", from other.pt" in " ".join(ran("measure", *arguments).stdout.split())
    assert json.loads(ran("measure", *arguments, "--json").stdout)["initial"] == "other.pt"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_returns_several_tensors_is_refused_in_words(command, trained):
    arguments = [command, "checkpointed.py:Several", "--data", "digits", *COMMANDS[command]]
    done = runner.invoke(app, arguments)
    assert "returns a tuple with tensors of shapes (1, 1), (1, 1, 8, 8)" in str(done.exception)
