import pickle

import pytest
import torch
from safetensors.torch import save_file

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.models.loading import load_checkpoint, load_model
from planimeter.training import save_weights


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
    with pytest.raises(InputError, match=r"no tensor '5\.weight' \(1, 1\)"):
        load_checkpoint(fully_connected(4, [5, 1]), path)
    with pytest.raises(
        InputError,
        match=r"tensor '3\.weight' \(1, 5\).* the model does not have; it has '1.weight' \(5, 4\)",
    ):
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
    message = r"no tensor 'running_mean' \(3,\), which the model needs; it has only 'weight' \(3,\)"
    with pytest.raises(InputError, match=message):
        load_checkpoint(target, path)


class Child(torch.nn.Module):
    """A network whose own child is called as the wrappers call theirs."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))

    def forward(self, x):
        return self.module(x)


def under(*prefixes):
    def renamed(state):
        return {"".join(prefixes) + name: value for name, value in state.items()}

    return renamed


def averaged(state):
    return {"n_averaged": torch.tensor(3), **under("module.")(state)}


def middle(state):
    """As the weights of a network whose child was compiled are called."""
    return {name.replace("module.", "module._orig_mod."): v for name, v in state.items()}


@pytest.mark.parametrize(
    "written",
    [
        dict,
        under("module."),
        under("_orig_mod."),
        under("_orig_mod.module."),
        under("module._orig_mod."),
        under("model."),
        averaged,
        lambda state: under("_orig_mod.")(averaged(state)),
        middle,
        lambda state: under("module.")(middle(state)),
    ],
)
@pytest.mark.parametrize("entry", [None, "model_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("make", [Child, lambda seed: fully_connected(4, seed=seed)])
def test_what_wrappers_put_before_names_is_dropped(tmp_path, written, entry, make):
    source, target = make(1), make(2)
    state, path = source.state_dict(), tmp_path / "weights.pt"
    content = written(state)
    if entry is not None:
        content = {"epoch": 7, entry: content, "optimizer": {"lr": 0.1}}
    torch.save(content, path)
    load_checkpoint(target, path)
    assert all(torch.equal(v, target.state_dict()[n]) for n, v in state.items())


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_a_wrapped_model_takes_the_weights_of_the_one_inside(tmp_path, wrap):
    source, target = Child(1), Child(2)
    for content in (source.state_dict(), wrap(source).state_dict()):
        torch.save(content, tmp_path / "weights.pt")
        load_checkpoint(wrap(target), tmp_path / "weights.pt")
        assert torch.equal(target.module[0].weight, source.module[0].weight)


def test_a_model_with_a_compiled_child_takes_plain_names(tmp_path):
    source, target = Child(1), Child(2)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    inside = target.module
    target.module = torch.compile(inside)
    load_checkpoint(target, tmp_path / "weights.pt")
    assert torch.equal(inside[0].weight, source.module[0].weight)


def test_own_weights_of_a_child_called_module_are_loaded(tmp_path):
    source, target = Child(1), Child(2)
    save_weights(source, tmp_path / "weights.safetensors")
    load_checkpoint(target, tmp_path / "weights.safetensors")
    assert torch.equal(target.module[0].weight, source.module[0].weight)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "net": {}}, "'epoch' is a int, and none of model_state_dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ([torch.ones(3)], "holds no state dict"),
        ({"module.weight": torch.ones(2, 3)}, r"no tensor 'bias' \(2,\)"),
        (
            {"module.weight": torch.ones(2, 4), "module.bias": torch.ones(3)},
            r"'weight' has shape \(2, 4\), the model needs \(2, 3\); so do 1 more",
        ),
    ],
)
def test_what_is_no_state_dict_of_the_model_is_explained(tmp_path, content, words):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=words):
        load_checkpoint(torch.nn.Linear(3, 2), tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "reference",
    ["./usersnets:net", "usersnets.py:net", "./usersnets.py:net", "{}/usersnets:net",
     "below/deep:net", "below/deep.py:net"],
)  # fmt: skip
def test_a_file_may_be_named_by_its_path(module, tmp_path, reference):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "deep.py").write_text("from usersnets import net\n")
    assert load_model(reference.format(tmp_path)).weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./nosuch:net", r"there is no file nosuch\.py"),
        ("below/usersnets.py:net", r"no file below/usersnets\.py"),
        (".usersnets:net", r"relative import: name the file, usersnets\.py"),
        (":net", "not of the form module:callable"),
        ("usersnets:", "not of the form module:callable"),
        ("broken:net", "importing 'broken' .* raised ZeroDivisionError"),
        ("usersnets:nett", "has no 'nett'; did you mean 'net'"),
    ],
)
def test_a_path_that_leads_nowhere_is_explained(module, tmp_path, reference, words):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(InputError, match=words):
        load_model(reference)
