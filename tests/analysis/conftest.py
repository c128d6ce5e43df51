import numpy as np
import pytest

from planimeter.analysis import Column, Population


def make(quantities, outcomes=None, factors=None):
    def column(values):
        values, errors = values if isinstance(values, tuple) else (values, np.zeros(len(values)))
        return Column(np.asarray(values, float), np.asarray(errors, float))

    first = next(iter(quantities.values()))
    n = len(first[0]) if isinstance(first, tuple) else len(first)
    return Population(
        tuple(f"net{i}" for i in range(n)),
        {name: np.asarray(values) for name, values in (factors or {}).items()},
        {name: column(values) for name, values in (outcomes or {}).items()},
        {name: column(values) for name, values in quantities.items()},
    )


@pytest.fixture
def population():
    """(quantities, outcomes, factors), arrays by name or (values, errors), to a population."""
    return make


@pytest.fixture
def coverage():
    """(analysis of a generator, truth, runs) to the share of intervals that contain the truth."""

    def share(analyse, truth, runs=400, seed=0):
        generator = np.random.default_rng(seed)
        results = [analyse(generator) for _ in range(runs)]
        return np.mean([r.low <= truth <= r.high for r in results])

    return share
