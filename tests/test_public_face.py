"""What users see: few flat names, families as modules, no name with two meanings."""

import importlib
import inspect
import pkgutil
import typing
import warnings

import pytest

import planimeter

FAMILIES = (
    "analysis", "curvature", "data", "ensembles", "flatness", "prior", "report", "slices", "study",
    "symmetry", "training",
)  # fmt: skip


def test_few_names_stand_flat():
    assert len(planimeter.__all__) <= 28
    for name in planimeter.__all__:
        assert getattr(planimeter, name) is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_no_module_has_the_name_of_a_function_beside_it(name):
    """`planimeter.curvature.trace` was a module or a function, depending on who asked."""
    family = importlib.import_module(f"planimeter.{name}")
    modules = {module.name for module in pkgutil.iter_modules(family.__path__)}
    assert not modules & {n for n in family.__all__ if callable(getattr(family, n))}
    assert getattr(planimeter, name) is family


@pytest.mark.parametrize("name", FAMILIES)
def test_types_that_public_functions_return_can_be_imported_from_the_same_place(name):
    family = importlib.import_module(f"planimeter.{name}")
    for public in family.__all__:
        function = getattr(family, public)
        if not inspect.isfunction(function):
            continue
        returned = typing.get_type_hints(function).get("return")
        for part in (returned, *typing.get_args(returned)):
            module = getattr(part, "__module__", "")
            if inspect.isclass(part) and module.startswith("planimeter."):
                homes = (family, planimeter, importlib.import_module(module.rpartition(".")[0]))
                assert any(part.__name__ in getattr(h, "__all__", ()) for h in homes), part


def test_old_flat_names_work_for_one_version_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"planimeter\.curvature\.log_product"):
        assert planimeter.log_product is planimeter.curvature.log_product
    with pytest.raises(AttributeError, match="no attribute 'log_prodct'"):
        planimeter.log_prodct  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planimeter.measure is planimeter.flatness.measure
