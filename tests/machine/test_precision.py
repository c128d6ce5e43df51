import subprocess
import sys

SCRIPT = """
import torch
from torch import nn
from planimeter.network.tracing import traced
from planimeter.machine.precision import full_precision

torch.cuda.is_available = lambda: True
conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
{set_up}
def settings():
    # "none" is what "ieee" is
    switches = (conv, torch.backends.cudnn.rnn, matmul)
    return [switch.fp32_precision.replace("none", "ieee") for switch in switches]
before = settings()
assert before[0] == {expected!r}, before
with full_precision():
    assert conv.fp32_precision != "tf32" and matmul.fp32_precision != "tf32"
    with full_precision():
        pass
    assert conv.fp32_precision != "tf32"
assert settings() == before, (before, settings())
"""


def run(set_up, expected, *more):
    script = "\n".join([SCRIPT.format(set_up=set_up, expected=expected), *more])
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", script], check=True)


def test_tf32_is_off_inside_and_back_outside():
    run("", "tf32", "traced(nn.Linear(2, 2), torch.ones(1, 2))")


def test_what_was_set_comes_back_with_either_kind_of_switch():
    run("torch.backends.cudnn.allow_tf32 = False", "ieee")
    run("conv.fp32_precision = 'ieee'", "ieee")
    run("torch.set_float32_matmul_precision('medium')", "tf32",
        "assert torch.get_float32_matmul_precision() == 'medium'")  # fmt: skip
