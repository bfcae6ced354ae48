"""C functions of torch: found by name, tried before use, called with the GIL held. Without them guards use Python."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_guards import compiled_only, parameter  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.kernels import jit  # noqa: E402
from fastopt.torch import c_abi  # noqa: E402
from fastopt.torch.guards import PythonGuard  # noqa: E402


def test_torchs_functions_are_found_on_linux():
    """Elsewhere they may be missing. On the platform of CI that would skip every test of compiled guards."""
    import platform

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("required only on Linux x86_64")
    assert c_abi.functions() is not None


@compiled_only
@pytest.mark.parametrize("name", c_abi.FUNCTIONS)
def test_if_a_function_is_missing_the_guard_is_the_python_one(name, monkeypatch):
    functions = {"absent_here" if n == name else n: kind for n, kind in c_abi.FUNCTIONS.items()}
    monkeypatch.setattr(c_abi, "FUNCTIONS", functions)
    c_abi.functions.cache_clear()
    try:
        assert c_abi.functions() is None
        p, q = parameter(3), parameter(3)
        ours, theirs = fastopt.torch.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
        assert f"guards: {PythonGuard.kind}" in repr(ours)
        for k in range(3):
            for x, opt in ((p, ours), (q, theirs)):
                x.grad = torch.full((3,), 1.0 + k)
                opt.step()
        torch.testing.assert_close(p, q)
    finally:
        c_abi.functions.cache_clear()


@compiled_only
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("data_ptr", "storage_size"),
        ("dim", "numel"),
        ("sizes", "strides"),
        ("strides", "sizes"),
        ("dtype", "device_type"),
        ("device_type", "dtype"),
        ("storage_size", "storage_offset"),
        ("storage_offset", "storage_size"),
    ],
)
def test_functions_with_wrong_results_are_not_used(name, other, monkeypatch):
    tried, library = c_abi._tried, ctypes.CDLL(torch._C.__file__)

    def try_others(calls):
        return tried({**calls, name: getattr(library, f"aoti_torch_get_{other}")})

    monkeypatch.setattr(c_abi, "_tried", try_others)
    c_abi.functions.cache_clear()
    try:
        assert c_abi.functions() is None
    finally:
        c_abi.functions.cache_clear()


@compiled_only
def test_a_tensor_at_an_unexpected_address_gets_the_python_guard(monkeypatch):
    """As if a later torch stored the C++ tensor at another offset: the functions would read arbitrary memory."""
    found = c_abi.functions()
    assert found is not None
    p = parameter(3)
    assert c_abi.are_where_expected([p], found)
    moved = found._replace(distance=found.distance - 8)
    assert not c_abi.are_where_expected([p], moved)
    monkeypatch.setattr(c_abi, "functions", lambda: moved)
    opt: Any = fastopt.torch.AdamW([p], lr=0.1)
    opt.step()
    assert opt._buckets.groups[0][0].arranged.guard.kind == PythonGuard.kind


def test_the_gil_is_held_while_tensors_are_checked():
    """Another thread could free them otherwise."""
    kernel = jit.load_module("fastopt.torch.check_tensors")
    assert not kernel.targetoptions.get("nogil")


@compiled_only
def test_torchs_functions_are_tried_on_real_tensors_under_any_mode():
    from torch._subclasses.fake_tensor import FakeTensorMode

    c_abi.functions.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        assert c_abi.functions() is not None
