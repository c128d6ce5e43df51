"""Signatures mean what they say: their names resolve, and their shapes are what comes and goes."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing

import pytest

import planimeter


def _public():
    """Every function, class and method that a package exports, by its full name."""
    for found in pkgutil.walk_packages(planimeter.__path__, "planimeter."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{found.name}.{name}", value
            if inspect.isclass(value):
                for own, member in vars(value).items():
                    function = member.fget if isinstance(member, property) else member
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and function.__module__.startswith(
                        "planimeter"
                    ):
                        yield f"{found.name}.{name}.{own}", function


def test_every_annotation_resolves():
    checked, failed = 0, {}
    for name, value in _public():
        checked += 1
        try:
            typing.get_type_hints(value)
        except Exception as error:
            failed[name] = error
    assert checked > 100
    assert not failed


# Shapes are checked in a process of its own: the hook has to be there before the package, and
# other tests give wrong shapes on purpose.
CALLS = """
import jaxtyping
from beartype import BeartypeConf, beartype
floors = "curvature flatness landscape operators prior symmetry slices losses".split()
import sys, types
checker = types.ModuleType("checker")
checker.checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules["checker"] = checker
jaxtyping.install_import_hook([f"planimeter.{floor}" for floor in floors], "checker.checked")

import torch
import planimeter as pm
from torch import nn

try:
    pm.binary_cross_entropy(torch.zeros(3), torch.zeros(3, 2))
except Exception as error:
    assert "labels" in str(error), error
else:
    raise AssertionError("shapes are not checked")
torch.manual_seed(0)
x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
land = pm.LossLandscape(net, nn.functional.cross_entropy, (x, y))
hessian = land.hessian()
pm.top_eigenvalues(hessian, 12)
copies = pm.CurvatureOperator.from_dense(torch.diag(torch.tensor([3.0] * 6 + [1.0] * 30)))
pm.top_eigenvalues(copies, 8)
pm.spectral_summary(hessian, k=3, probes=3, steps=6, extra=4)
pm.curvature.spectral_density(copies, probes=3).density(torch.linspace(-1, 4, 9), 0.1)
for method in ("hutchinson", "hutch++", "xtrace"):
    pm.trace(hessian, probes=12, method=method)
pm.curvature.frobenius_norm(hessian, probes=12)
pm.curvature.diagonal(hessian, probes=5)
pm.curvature.gauss_newton_spectrum(land)
pm.curvature.hessian_rank_bound(land)
pm.measure(land, ["rangamani", "relative_flatness", "normalized_flat_minima", "fisher_rao_norm"])
pm.find_rescalings(net, x)
kernel = pm.nngp_kernel(net, x.double())
pm.nngp_kernel(net, x.double(), x.double()[:6])
head = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2), *head)
pm.nngp_kernel(images, torch.randn(5, 1, 6, 6).double())
pm.log_prior(kernel, (y > 0).long())
pm.slice_1d(land, pm.slices.random_direction(land), torch.linspace(-1, 1, 3))
"""


@pytest.mark.slow
def test_shapes_are_those_of_the_signatures():
    pytest.importorskip("beartype")
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
