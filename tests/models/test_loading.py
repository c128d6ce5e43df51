import pickle

import pytest
import torch
from safetensors.torch import save_file

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.models.loading import load_checkpoint, load_model


@pytest.fixture
def module(monkeypatch, tmp_path):
    """A user's module in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "usersnets.py").write_text(
        "import torch\n"
        "def net():\n    return torch.nn.Linear(3, 2)\n"
        "def needs(width):\n    return torch.nn.Linear(3, width)\n"
        "def text():\n    return 'no model'\n"
    )
    return "usersnets"


def test_loads_from_the_current_folder(module):
    assert load_model(f"{module}:net").weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("usersnets", "not of the form module:callable"),
        ("nosuchmodule:net", "cannot import 'nosuchmodule'"),
        ("usersnets:other", "has no 'other'"),
        ("usersnets:needs", "without arguments raised TypeError"),
        ("usersnets:text", "returned an object of type str"),
    ],
)
def test_wrong_references_are_explained(module, reference, message):
    with pytest.raises(InputError, match=message):
        load_model(reference)


@pytest.mark.parametrize("form", ["plain", "wrapped", "parallel", "safetensors"])
def test_checkpoints_of_all_usual_forms(tmp_path, form):
    source, target = fully_connected(4, seed=1), fully_connected(4, seed=2)
    state, path = source.state_dict(), tmp_path / "weights.pt"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    elif form == "parallel":
        torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state if form == "plain" else {"model": state}, path)
    load_checkpoint(target, path)
    assert all(torch.equal(v, target.state_dict()[n]) for n, v in state.items())


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(fully_connected(4, [5]).state_dict(), path)
    with pytest.raises(
        InputError, match=r"'1\.weight' has shape \(5, 4\), the model needs \(6, 4\)"
    ):
        load_checkpoint(fully_connected(4, [6]), path)
    with pytest.raises(InputError, match=r"no tensor '5\.weight'"):
        load_checkpoint(fully_connected(4, [5, 1]), path)
    with pytest.raises(InputError, match=r"tensor '3\.weight', which the model does not have"):
        load_checkpoint(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5)), path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint ran code",))

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="tensors alone"):
        load_checkpoint(torch.nn.Linear(1, 1), path)


def test_missing_and_broken_files_are_explained(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        load_checkpoint(torch.nn.Linear(1, 1), tmp_path / "nothing.pt")
    torch.save({"weight": torch.ones(1, 1)}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:500])
    with pytest.raises(InputError, match="or damaged"):
        load_checkpoint(torch.nn.Linear(1, 1), tmp_path / "cut.pt")
    (tmp_path / "x.safetensors").write_bytes(b"garbage")
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_checkpoint(torch.nn.Linear(1, 1), tmp_path / "x.safetensors")


def test_the_counter_that_old_pytorch_did_not_save_may_be_missing(tmp_path):
    source, path = torch.nn.BatchNorm1d(3), tmp_path / "weights.pt"
    source(torch.rand(4, 3))
    state = source.state_dict()
    del state["num_batches_tracked"]
    torch.save(state, path)
    target = torch.nn.BatchNorm1d(3)
    load_checkpoint(target, path)
    assert torch.equal(target.running_mean, source.running_mean)
    del state["running_mean"]
    torch.save(state, path)
    message = "no tensor 'running_mean', which the model needs; it has 'weight', 'bias'"
    with pytest.raises(InputError, match=message):
        load_checkpoint(target, path)
