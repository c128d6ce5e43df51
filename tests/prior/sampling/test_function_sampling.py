import math

import numpy as np
import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.prior import (
    boolean_inputs,
    fully_connected_kernel,
    log_prior,
    sample_functions,
)
from planimeter.prior.sampling.random_functions import BATCH, FullyConnectedFunctions

WIDTHS, SETTINGS = (4, 10, 10, 1), {"sigma_w": 1.0, "sigma_b": 0.1}
SAMPLES = 20 * BATCH + 123
SHORT = 40 * 32 * 4
"""Memory for 40 functions."""


@pytest.fixture
def x():
    return boolean_inputs(4)


def full_count(x, samples=SAMPLES, seed=0):
    functions = FullyConnectedFunctions(x, WIDTHS[1:-1], **SETTINGS)
    batches = [functions.batch(seed, i) for i in range(-(-samples // BATCH))]
    return np.unique(np.concatenate(batches)[:samples], return_counts=True)


def same(a, b):
    return (a.words == b.words).all() and (a.counts == b.counts).all()


def test_counts_are_those_of_the_stream(x):
    found = sample_functions(WIDTHS, x, SAMPLES, **SETTINGS)
    words, counts = full_count(x)
    order = np.argsort(found.words[:, 0])
    assert (found.words[order, 0] == words).all()
    assert (found.counts[order] == counts).all()
    assert (np.diff(found.counts) <= 0).all()
    assert found.exact_top == min(1000, len(words))
    assert found.complete
    assert found.threshold == 0


@pytest.mark.parametrize("seed", range(3))
def test_leading_counts_are_exact_in_little_memory(x, seed, monkeypatch):
    monkeypatch.setattr("planimeter.prior.sampling.function_sampling._MERGED_AT_ONCE", 2 * BATCH)
    stages = set()
    found = sample_functions(
        WIDTHS, x, SAMPLES, seed=seed, top=20, memory=SHORT, **SETTINGS,
        progress=lambda stage, done, total: stages.add(stage),
    )  # fmt: skip
    words, counts = full_count(x, seed=seed)
    assert found.threshold > 0
    assert len(found.counts) <= 40
    certain = found.exact_top
    assert certain >= 10
    assert sorted(counts, reverse=True)[:certain] == found.counts[:certain].tolist()
    true = dict(zip(words.tolist(), counts.tolist(), strict=True))
    for (word,), count, missing in zip(found.words, found.counts, found.missing, strict=True):
        assert count <= true[int(word)] <= count + missing


def test_a_second_pass_counts_those_that_came_late(x, monkeypatch):
    monkeypatch.setattr("planimeter.prior.sampling.function_sampling._MERGED_AT_ONCE", BATCH)
    stages = []
    # So short of memory that functions among the leading ones are dropped and come back.
    found = sample_functions(
        WIDTHS, x, SAMPLES, top=60, memory=3 * SHORT, **SETTINGS,
        progress=lambda stage, done, total: stages.append(stage),
    )  # fmt: skip
    assert "recount" in stages
    counts = sorted(full_count(x)[1], reverse=True)
    assert found.exact_top > 30
    assert counts[: found.exact_top] == found.counts[: found.exact_top].tolist()


def test_threads_change_nothing_and_torch_keeps_its_number(x):
    before, state = torch.get_num_threads(), torch.get_rng_state()
    one = sample_functions(WIDTHS, x, SAMPLES, threads=1, **SETTINGS)
    assert same(one, sample_functions(WIDTHS, x, SAMPLES, threads=3, **SETTINGS))
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def interrupted(at, stage="sample"):
    def progress(name, done, total):
        if name == stage and done >= at:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on_where_it_was(x, tmp_path):
    whole = sample_functions(WIDTHS, x, SAMPLES, **SETTINGS)
    file = tmp_path / "counts.npz"
    stopped = sample_functions(
        WIDTHS, x, SAMPLES, out=file, progress=interrupted(5 * BATCH), **SETTINGS
    )
    assert not stopped.complete
    assert stopped.samples == stopped.counts.sum() == 5 * BATCH
    drawn = []
    resumed = sample_functions(
        WIDTHS, x, SAMPLES, out=file, **SETTINGS,
        progress=lambda stage, done, total: drawn.append(done),
    )  # fmt: skip
    assert drawn[0] == 6 * BATCH
    assert same(resumed, whole)
    more = sample_functions(WIDTHS, x, 2 * SAMPLES, out=file, **SETTINGS)
    assert same(more, sample_functions(WIDTHS, x, 2 * SAMPLES, **SETTINGS))


def test_an_interrupted_recount_goes_on_too(x, tmp_path, monkeypatch):
    monkeypatch.setattr("planimeter.prior.sampling.function_sampling._MERGED_AT_ONCE", BATCH)
    short = {"top": 60, "memory": 3 * SHORT, **SETTINGS}
    whole = sample_functions(WIDTHS, x, SAMPLES, **short)
    file = tmp_path / "counts.npz"
    stop = interrupted(7 * BATCH, "recount")
    stopped = sample_functions(WIDTHS, x, SAMPLES, out=file, progress=stop, **short)
    assert not stopped.complete
    assert stopped.exact_top < whole.exact_top
    drawn = []
    resumed = sample_functions(
        WIDTHS, x, SAMPLES, out=file, **short,
        progress=lambda stage, done, total: drawn.append((stage, done)),
    )  # fmt: skip
    assert drawn[0] == ("recount", 8 * BATCH)
    assert same(resumed, whole)


def test_a_file_of_another_stream_is_refused(x, tmp_path):
    file = tmp_path / "counts.npz"
    sample_functions(WIDTHS, x, BATCH, out=file, **SETTINGS)
    with pytest.raises(InputError, match="seed is 0 there and 1 here"):
        sample_functions(WIDTHS, x, BATCH, out=file, seed=1, **SETTINGS)
    with pytest.raises(InputError, match="inputs_sha256"):
        sample_functions(WIDTHS, 2 * x, BATCH, out=file, **SETTINGS)
    with pytest.raises(InputError, match="more than the 10 asked for"):
        sample_functions(WIDTHS, x, 10, out=file, **SETTINGS)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no counts that could be read"):
        sample_functions(WIDTHS, x, BATCH, out=file, **SETTINGS)
    with pytest.raises(InputError, match=r"\.npz"):
        sample_functions(WIDTHS, x, BATCH, out=tmp_path / "counts.txt", **SETTINGS)


def test_a_sequential_network_is_its_widths_and_others_go_as_modules(x):
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 1)
    )  # fmt: skip
    found = sample_functions(net, x, BATCH, **SETTINGS)
    assert same(found, sample_functions(WIDTHS, x, BATCH, **SETTINGS))
    smooth = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1))
    weights = smooth[0].weight.clone()
    found = sample_functions(smooth, x, 2 * BATCH, **SETTINGS)
    assert found.counts.sum() == 2 * BATCH
    assert torch.equal(smooth[0].weight, weights)
    assert smooth.training


def test_a_module_in_training_keeps_its_statistics(x, tmp_path):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    file = tmp_path / "counts.npz"
    sample_functions(net, x, BATCH, out=file, **SETTINGS)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    net[1].running_mean += 1
    with pytest.raises(InputError, match="network is"):
        sample_functions(net, x, BATCH, out=file, **SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_agrees_with_the_orthants_of_the_analytic_kernel(depth):
    # Shifted along one axis, so that some functions are frequent.
    generator = torch.Generator().manual_seed(depth)
    inputs = torch.randn(10, 3, generator=generator) + torch.tensor([1.0, 0.0, 0.0])
    width = {1: 512, 2: 64}[depth]
    found = sample_functions((3, *[width] * depth, 1), inputs, 100_000, sigma_w=1.4, sigma_b=0.3)
    kernel = fully_connected_kernel(inputs, depth=depth, sigma_w=1.4, sigma_b=0.3)
    for function, p in zip(found.functions(6), found.probabilities(6), strict=True):
        limit = log_prior(kernel, function.int())
        sampled = p.log()
        # The law at finite width differs from the Gaussian process's by O(1/width).
        allowed = 4 * math.hypot(limit.stderr, sampled.stderr) + 5 / width
        assert abs(limit.value - sampled.value) < allowed


def test_frequent_boolean_functions_are_simple():
    found = sample_functions((7, 40, 40, 1), boolean_inputs(7), 100_000, **SETTINGS)
    seen = int((found.counts >= 3).sum())
    log_p = np.log(found.counts[:seen])
    assert seen > 200
    assert np.corrcoef(log_p, found.complexity(seen).numpy())[0, 1] < -0.5
    # Sign symmetry of the last layer: a function and its complement are equally probable.
    zero, one = (found.log_prior(torch.full((128,), bit)) for bit in (0, 1))
    assert abs(zero.value - one.value) < 4 * math.hypot(zero.stderr, one.stderr)


def test_intervals_and_unseen_functions(x):
    found = sample_functions(WIDTHS, x, 10_000, **SETTINGS)
    lower, upper = found.intervals(5)
    for i, p in enumerate(found.probabilities(5)):
        assert lower[i] < p.value < upper[i]
        assert p.value == found.counts[i] / 10_000
    parity = boolean_inputs(4).sum(1).int() % 2
    assert found.count(parity) == (0, 0)
    value = found.log_prior(parity)
    assert value.value == -math.inf
    assert "log P < -7.8" in value.method  # 3.84 of 10,000
    content = found.as_dict(3)
    assert content["functions"][0]["count"] == found.counts[0]
    assert len(content["functions"][0]["function"]) == 16
    with pytest.raises(InputError, match="15 outputs"):
        found.log_prior(parity[:15])


def test_wrong_input_is_refused(x):
    with pytest.raises(InputError, match="takes 5 numbers"):
        sample_functions((5, 3, 1), x, 10)
    with pytest.raises(InputError, match="one output"):
        sample_functions((4, 3), x, 10)
    with pytest.raises(InputError, match="at least 1"):
        sample_functions(WIDTHS, x, 0)
    with pytest.raises(InputError, match="seed of a stream must be at least 0, got -1"):
        sample_functions(WIDTHS, x, 10, seed=-1)
    with pytest.raises(InputError, match="too few for the 1000"):
        sample_functions(WIDTHS, x, 10, memory=1000)
    with pytest.raises(InputError, match="input 3"):
        sample_functions(WIDTHS, torch.where(torch.arange(16)[:, None] == 3, math.nan, x), 10)
    with pytest.raises(InputError, match="sigma_w"):
        sample_functions(WIDTHS, x, 10, sigma_w=0.0)
    with pytest.raises(InputError, match="no parameters"):
        sample_functions(nn.Flatten(), x, 10)
