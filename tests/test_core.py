"""The package as a whole: what importing it needs and what it leaves alone."""

import subprocess
import sys

import torch

import planimeter

CORE_ALONE = """
import sys
import torch
before = set(sys.modules)
import planimeter
x = torch.randn(6, 4); y = torch.tensor([0, 1, 0, 1, 0, 1])
net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
planimeter.measure(planimeter.LossLandscape(net, planimeter.binary_cross_entropy, (x, y)))
planimeter.log_prior(planimeter.nngp_kernel(net, x), y)
foreign = {
    "pydantic", "dask", "distributed", "typer", "rich", "plotly", "yaml", "matplotlib",
    "sklearn", "safetensors", "jinja2", "pooch",
} & (set(sys.modules) - before)
assert not foreign, f"the core must not import {foreign}"
"""


def test_the_core_runs_with_torch_numpy_scipy_and_jaxtyping_alone():
    subprocess.run([sys.executable, "-c", CORE_ALONE], check=True)


def test_every_public_name_is_documented():
    for name in planimeter.__all__:
        assert getattr(planimeter, name).__doc__, name


def test_global_random_state_is_untouched(small_landscape):
    state = torch.get_rng_state()
    planimeter.measure(small_landscape)
    kernel = planimeter.prior.fully_connected_kernel(torch.randn(5, 3, generator=torch.Generator()))
    planimeter.log_prior(kernel, torch.tensor([0, 1, 0, 1, 1]), particles=50)
    assert torch.equal(torch.get_rng_state(), state)
