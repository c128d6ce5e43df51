import pytest
import torch

from planimeter.machine import memory
from planimeter.machine.memory import free_memory, is_out_of_memory


def test_free_memory_is_some_but_not_more_than_a_container_has(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert 0 < free_memory(cpu) < 2**50
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    usage.write_text("300\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((limit, usage),))
    for written, expected in (("1000\n", 700), ("100\n", 0)):
        limit.write_text(written)
        assert free_memory(cpu) == expected
    limit.write_text("max\n")
    assert free_memory(cpu) > 1000


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("not enough memory: you tried to allocate 1 GB"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error, expected):
    assert is_out_of_memory(error) == expected


def test_an_allocation_that_cannot_be_made_is_recognised():
    with pytest.raises((RuntimeError, MemoryError)) as failure:
        torch.empty(2**60)
    assert is_out_of_memory(failure.value)
