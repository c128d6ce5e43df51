"""Signatures mean what they say: their names resolve, and their shapes are what comes and goes."""

import importlib
import inspect
import pkgutil
import typing

import planimeter


def _public():
    """Every public function, class and method, by its full name."""
    for found in pkgutil.walk_packages(planimeter.__path__, "planimeter."):
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != found.name:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{found.name}.{name}", value
            if inspect.isclass(value):
                for own, member in vars(value).items():
                    function = member.fget if isinstance(member, property) else member
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function):
                        yield f"{found.name}.{name}.{own}", function


def test_every_annotation_resolves():
    checked, failed = 0, {}
    for name, value in _public():
        checked += 1
        try:
            typing.get_type_hints(value)
        except Exception as error:
            failed[name] = error
    assert checked > 500
    assert not failed
