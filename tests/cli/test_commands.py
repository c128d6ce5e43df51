"""Every command as a user runs it: results, JSON, and one clear sentence for wrong input."""

import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch

from planimeter.cli import app, main
from planimeter.data import binary, load
from planimeter.flatness import MEASURES
from planimeter.models.fully_connected import fully_connected

COMMANDS = [[], ["demo"], ["measure"], ["audit"], ["slice"], ["prior"], ["study"], ["data"]] + [
    ["study", name] for name in ("list", "run", "status", "report")
]


@pytest.fixture
def planimeter(monkeypatch, capsys):
    """Runs the command; (exit code, standard output, standard error on one line)."""

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["planimeter", *arguments])
        monkeypatch.setattr(sys, "path", [p for p in sys.path if "pytest-of" not in p])
        sys.modules.pop("mynets", None)
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, " ".join(told.err.split())

    return run


@pytest.fixture
def user(tmp_path):
    """A user's folder with a module, a checkpoint, and a broken one."""
    (tmp_path / "mynets.py").write_text(
        "import torch\n"
        "from planimeter.models.fully_connected import fully_connected\n"
        "def fcn():\n    return fully_connected(64, [10], seed=3)\n"
        "def wide():\n    return fully_connected(64, [12], seed=3)\n"
        "def ten():\n    return fully_connected(64, [10], 10, seed=3)\n"
        "def three():\n    return fully_connected(64, [10], 3)\n"
        "def broken():\n    raise RuntimeError('boom')\n"
        "def tanh():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2), "
        "torch.nn.Tanh(), torch.nn.Linear(2, 1))\n"
        "def normed():\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.Linear(64, 32), "
        "torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 1))\n"
        "def constant():\n    net = fcn()\n    torch.nn.init.zeros_(net[-1].weight)\n"
        "    torch.nn.init.ones_(net[-1].bias)\n    return net\n"
    )
    state = fully_connected(64, [10], seed=3).state_dict()
    torch.save(state, tmp_path / "good.pt")
    state["1.weight"] = torch.full_like(state["1.weight"], float("nan"))
    torch.save(state, tmp_path / "nan.pt")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    if command and command not in (["study"], ["data"]):
        assert re.search(r"Example:\s+planimeter", shown.output)


def test_the_squared_loss_of_one_output_has_labels_of_its_shape_and_no_accuracy(user, planimeter):
    options = "--loss", "mse", "--rows", "50", "--measures", "trace"
    code, text, _ = planimeter("measure", "mynets:fcn", *options, "--json", cwd=user)
    content = json.loads(text)
    assert code == 0
    assert content["accuracy"] is None
    code, text, _ = planimeter("measure", "mynets:fcn", *options, cwd=user)
    assert code == 0
    assert "mse" in text
    assert "accuracy" not in text


def test_measure(user, planimeter):
    code, text, _ = planimeter(
        "measure", "mynets:fcn", "--checkpoint", "good.pt", "--rows", "100", "--json", cwd=user
    )
    content = json.loads(text)
    assert code == 0
    assert content["parameters"] == 64 * 10 + 10 + 10 + 1
    assert content["loss_function"] == "binary_cross_entropy"
    assert content["measures"]["trace"]["stderr"] > 0
    assert content["measures"]["top_eigenvalue"]["converged"]
    code, text, _ = planimeter("measure", "mynets:ten", "--rows", "50", cwd=user)
    assert code == 0
    assert "cross_entropy" in text
    assert re.search(r"trace\s+\d.* ± ", text)


def test_distances_from_the_weights_before_training(user, planimeter):
    words = ["measure", "mynets:fcn", "--checkpoint", "good.pt", "--rows", "50", "--initial"]
    which = ["--measures", "distance_from_init,spectral_distance_from_init", "--json"]
    code, text, _ = planimeter(*words, "good.pt", *which, cwd=user)
    assert code == 0
    assert [m["value"] for m in json.loads(text)["measures"].values()] == [0, 0]
    code, _, errors = planimeter(*words, "good.pt", "--by-layer", cwd=user)
    assert code == 2
    assert "leave out --by-layer" in errors


def test_spectra(user, planimeter):
    code, text, _ = planimeter(
        "measure", "mynets:fcn", "--checkpoint", "good.pt", "--rows", "100", "--spectrum",
        "--plot", "densities.png", "--json", cwd=user,
    )  # fmt: skip
    content = json.loads(text)
    assert code == 0
    assert content["measures"] == {}
    assert content["batch_norm"] == "none"
    hessian, ggn = (content["spectra"][name] for name in ("Hessian", "Gauss-Newton matrix"))
    assert hessian["largest"]["converged"]
    difference = hessian["trace"]["value"] - ggn["trace"]["value"]
    assert abs(difference) < 5 * (hessian["trace"]["stderr"] + ggn["trace"]["stderr"])
    assert sum(hessian["density"]["weights"][0]) == pytest.approx(1)
    assert (user / "densities.png").stat().st_size > 1000
    code, text, _ = planimeter(
        "measure", "mynets:fcn", "--checkpoint", "good.pt", "--rows", "50", "--spectrum",
        "--measures", "trace", cwd=user,
    )  # fmt: skip
    assert "Gauss-Newton matrix" in text
    assert re.search(r"^ ?trace ", text, re.MULTILINE)


def test_inputs_are_normalised_on_request(user, planimeter):
    (user / "mynets.py").write_text(
        "import torch\n"
        "from planimeter.models.fully_connected import fully_connected\n"
        "class Normalised(torch.nn.Module):\n"
        "    def forward(self, x):\n        return (x - 0.3) / 0.2\n"
        "def fcn():\n    return fully_connected(64, [10], seed=3)\n"
        "def inside():\n    return torch.nn.Sequential(Normalised(), *fcn())\n"
    )
    measure = ["--rows", "50", "--measures", "trace", "--json"]
    outside = ["mynets:fcn", "--mean", "0.3", "--std", "0.2"]
    one = json.loads(planimeter("measure", *outside, *measure, cwd=user)[1])
    two = json.loads(planimeter("measure", "mynets:inside", *measure, cwd=user)[1])
    assert (one["mean"], one["std"], two["mean"], two["std"]) == ([0.3], [0.2], None, None)
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
    assert one["measures"]["trace"]["value"] == pytest.approx(
        two["measures"]["trace"]["value"], rel=1e-4
    )
    prior = ["--train", "20", "--test", "10", "--json"]
    one = json.loads(planimeter("prior", *outside, *prior, cwd=user)[1])
    two = json.loads(planimeter("prior", "mynets:fcn", *prior, cwd=user)[1])
    assert (one["mean"], one["std"]) == ([0.3], [0.2])
    assert one["log_prior"]["value"] != two["log_prior"]["value"]


def test_prior(user, planimeter):
    arguments = ["prior", "mynets:fcn", "--train", "40", "--test", "20", "--seed", "2"]
    code, text, _ = planimeter(*arguments, "--json", cwd=user)
    content = json.loads(text)
    assert code == 0
    assert content["log_prior"]["value"] < 0
    assert content["log_prior"]["stderr"] > 0
    assert content["log_prior"]["noise"] == 0
    _, again, _ = planimeter(*arguments, "--json", cwd=user)
    assert json.loads(again)["log_prior"] == content["log_prior"]
    code, text, _ = planimeter(*arguments, "--noise", "1", cwd=user)
    assert code == 0
    assert "noise 1" in text


def test_prior_of_a_network_that_fits_has_bounds(user, planimeter):
    """With this seed, S has no 9, so a constant fits it; E has some."""
    arguments = ["prior", "mynets:constant", "--train", "12", "--test", "20", "--seed", "3"]
    code, text, _ = planimeter(*arguments, "--positive", "0,1,2,3,4,5,6,7,8", "--json", cwd=user)
    content = json.loads(text)
    assert code == 0
    assert content["train_error"] == 0
    prior, evidence = content["log_prior"]["value"], content["log_evidence"]["value"]
    assert prior < evidence < 0
    assert content["log_posterior"]["value"] == pytest.approx(prior - evidence, abs=1e-9)
    bound = content["bounds"]["bound for f"]
    assert bound["value"] == pytest.approx((-prior + math.log(20)) / 12, rel=1e-12)
    assert set(content["bounds"]) == {"bound for f", "bound for P(f|S)"}


def test_prior_takes_the_rows_that_a_network_was_trained_on(user, planimeter):
    def error_on_s(*arguments):
        code, text, _ = planimeter(
            "prior", "mynets:fcn", "--train", "9", "--test", "9", *arguments, "--json", cwd=user
        )
        assert code == 0
        return json.loads(text)["train_error"]

    net, digits = fully_connected(64, [10], seed=3), binary(load("digits"))
    wrong = (net(digits.inputs[:9]).reshape(-1) > 0) != digits.labels[:9].bool()
    assert error_on_s("--in-order") == pytest.approx(float(wrong.double().mean()))
    assert error_on_s("--in-order", "--seed", "5") == error_on_s("--in-order")
    _, _, told = planimeter("prior", "mynets:fcn", "--train", "9", "--test", "9", cwd=user)
    text = planimeter("prior", "mynets:fcn", "--train", "9", "--test", "9", cwd=user)[1]
    assert "S was drawn by --seed 0" in " ".join((text + told).split())


def test_prior_on_a_measured_kernel(user, planimeter):
    arguments = ["prior", "mynets:normed", "--kernel", "empirical", "--networks", "20"]
    code, text, _ = planimeter(*arguments, "--train", "30", "--test", "10", "--json", cwd=user)
    content = json.loads(text)
    assert code == 0
    assert content["kernel"] == "empirical"
    assert content["log_prior"]["networks"] == 20
    assert content["log_prior"]["kernel_stderr"] > 0
    code, text, _ = planimeter(*arguments, "--train", "800", "--test", "10", cwd=user)
    assert code == 2


def test_an_interrupted_measurement_shows_what_was_finished(user, planimeter, monkeypatch):
    def interrupted(landscape, **settings):
        raise KeyboardInterrupt

    slow = replace(MEASURES["keskar_sharpness"], compute=interrupted)
    monkeypatch.setitem(MEASURES, "keskar_sharpness", slow)
    arguments = ["measure", "mynets:fcn", "--measures", "l2_norm,keskar_sharpness,trace", "--json"]
    code, text, errors = planimeter(*arguments, "--rows", "20", cwd=user)
    content = json.loads(text)
    assert code == 130
    assert content["interrupted"]
    assert list(content["measures"]) == ["l2_norm"]
    assert "interrupted: these are the measures that were finished" in errors
    arguments = ["measure", "mynets:fcn", "--measures", "keskar_sharpness", "--rows", "20"]
    code, text, errors = planimeter(*arguments, cwd=user)
    assert (code, text) == (130, "")
    assert "interrupted: no measure was finished" in errors


@pytest.mark.parametrize("command", ["measure", "audit", "prior"])
def test_negative_seeds_are_refused(user, planimeter, command):
    code, _, errors = planimeter(command, "mynets:fcn", "--seed", "-1", cwd=user)
    assert code == 2
    assert "Invalid value for '--seed': Input should be greater than or equal to 0" in errors


def test_lists(user, planimeter, monkeypatch):
    monkeypatch.setenv("PLANIMETER_DATA", str(user))
    _, text, _ = planimeter("data", "list", "--json", cwd=user)
    data = {entry["name"]: entry for entry in json.loads(text)["data"]}
    assert {name for name, entry in data.items() if entry["ready"]} >= {"digits", "boolean"}
    assert not data["mnist"]["ready"]
    assert data["mnist"]["rows"] == [60000, 10000]
    assert data["mnist"]["where"] == "missing: run `planimeter data fetch mnist`"
    assert f"put sonar.csv into {user}/uci (from" in data["sonar"]["where"]
    _, text, _ = planimeter("data", "list", cwd=user)
    assert re.search(r"cifar10 +50,000 \+ *10,000", re.sub(r"\s+", " ", text))
    _, text, _ = planimeter("study", "list", "--json", cwd=user)
    assert {"demo", "zhang2021/fig3-mnist"} <= {entry["id"] for entry in json.loads(text)}


@pytest.mark.slow
def test_a_study_from_start_to_report(small_study_file, planimeter):
    folder = small_study_file.parent
    code, text, told = planimeter(
        "study", "run", "small.yaml", "--out", "run", "--json", cwd=folder
    )
    assert code == 0, told
    assert "12 trials run" in told
    assert len(json.loads(text)["correlations"]) == 6
    assert (folder / "run" / "report.html").is_file()
    _, text, _ = planimeter("study", "status", "run", "--json", cwd=folder)
    assert json.loads(text)["done"] == 12
    code, text, _ = planimeter("study", "report", "run", cwd=folder)
    assert code == 0
    assert "Pearson r" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["measure", "mynets:wide", "--checkpoint", "good.pt"],
         "tensor '1.weight' has shape (10, 64), the model needs (12, 64)"),
        (["measure", "mynets:fcn", "--checkpoint", "nan.pt"],
         "parameter '1.weight' has 640 of 640 values that are not finite"),
        (["measure", "mynets:fcn", "--data", "mnist"], "mnist/train-images-idx3-ubyte.gz"),
        (["measure", "mynets:fcn", "--data", "cifar10"], "cifar10/cifar-10-binary.tar.gz"),
        (["measure", "mynets:fcn", "--mean", "0.5,0.4"], "for these inputs 1, got 2: 0.5,0.4"),
        (["measure", "mynets:fcn", "--std", "0"], "std must be positive, finite numbers, got 0"),
        (["measure", "mynets:fcn", "--mean", "half"], "'half' is not a list of numbers"),
        (["prior", "mynets:fcn", "--std", "-1"], "std must be positive, finite numbers, got -1"),
        (["measure", "mynets:fcn", "--measures", "tracee"], "no measure 'tracee'"),
        (["measure", "mynets:three"], "mynets:three has 3 outputs, digits 10 classes"),
        (["measure", "mynets:broken"], "raised RuntimeError: boom"),
        (["prior", "mynets:fcn", "--checkpoint", "nan.pt"], "640 of 640 values that are not"),
        (["prior", "mynets:fcn", "--sigma-w", "-1"], "sigma_w must be positive"),
        (["prior", "mynets:ten"], "mynets:ten has 10 outputs"),
        (["prior", "mynets:wide", "--data", "boolean", "--train", "9", "--test", "9"],
         "mynets:wide does not accept boolean inputs of shape (1, 7)"),
        (["prior", "mynets:fcn", "--data", "mnits"], "no data set 'mnits'"),
        (["study", "run", "demo", "--out", "/proc/x"], "cannot write to /proc/x"),
        (["measure", "mynets:fcn", "--plot", "a.png"], "--plot draws what --spectrum computes"),
        (["measure", "mynets:fcn", "--spectrum", "--plot", "a.jpgg"],
         "figures are written as .png, .pdf or .svg, got a.jpgg"),
        (["audit", "mynets:fcn", "--plot", "/proc/a.png"], "cannot write to /proc/a.png"),
        (["measure", "mynets:fcn", "--batch-norm", "live"], "no BatchNorm policy 'live'"),
        (["measure", "mynets"], "not of the form module:callable"),
        (["measure", "mynets:fcn", "--loss", "hinge"], "no loss 'hinge'"),
        (["prior", "mynets:normed"], "BatchNorm"),
        (["prior", "mynets:fcn", "--kernel", "exact"], "no kernel 'exact'; there are analytic"),
        (["prior", "mynets:fcn", "--method", "mcmc"], "unknown method 'mcmc'"),
        (["prior", "mynets:fcn", "--positive", "5,x"], "no class 'x'; there are 0 to 9"),
        (["prior", "mynets:fcn", "--train", "5000"], "too few rows for 5000 training"),
        (["study", "run", "nothing.yaml"], "no study file at nothing.yaml"),
        (["study", "run", "demos"], "did you mean 'demo'"),
        (["study", "run", "bad.yaml"], "line 2: unknown key 'data.trian'; did you mean 'train'"),
        (["study", "status", "."], "no results in"),
        (["data", "fetch", "mnits"], "no data set 'mnits'"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_exit_code_2(
    user, planimeter, monkeypatch, arguments, sentence
):
    monkeypatch.setenv("PLANIMETER_DATA", str(user))
    (user / "bad.yaml").write_text(
        "title: bad\ndata: {name: digits, trian: 20, test: 20}\n"
        "grid: {optimisers: [{name: adam}], attack: [0], repetitions: 1}\n"
    )
    code, text, told = planimeter(*arguments, cwd=user)
    assert code == 2
    assert sentence in told
    assert text == ""


def test_version_and_seeded_weights(user, planimeter):
    assert "planimeter 0." in planimeter("--version", cwd=user)[1]
    (user / "mynets.py").write_text(
        "import torch\ndef net():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))\n"
    )
    call = ["measure", "mynets:net", "--rows", "50", "--measures", "trace", "--json", "--seed"]
    one, same, other = (planimeter(*call, seed, cwd=user) for seed in ("1", "1", "2"))
    assert "no --checkpoint" in one[2]
    norms = [json.loads(run[1])["theta_norm"] for run in (one, same, other)]
    assert norms[0] == norms[1] != norms[2]
