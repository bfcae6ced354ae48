"""Torch's own C functions: found by name, tried before use, called under the interpreter's lock, or done without."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_guards import compiled_only, parameter  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.kernels import jit  # noqa: E402
from fastopt.torch import c_abi  # noqa: E402
from fastopt.torch.guards import PythonGuard  # noqa: E402


def test_torchs_functions_are_found_where_ci_runs():
    """Not to find them is allowed elsewhere; here it would make every test of the compiled way pass by skipping."""
    import platform

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("tried on Linux alone")
    assert c_abi.functions() is not None


@compiled_only
@pytest.mark.parametrize("name", c_abi.FUNCTIONS)
def test_without_one_of_torchs_functions_the_guard_is_in_python(name, monkeypatch):
    without = {"absent_here" if n == name else n: kind for n, kind in c_abi.FUNCTIONS.items()}
    monkeypatch.setattr(c_abi, "FUNCTIONS", without)
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
def test_functions_that_answer_something_else_are_found_out(name, other, monkeypatch):
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
def test_a_tensor_that_is_not_where_it_should_be_gets_the_guard_in_python(monkeypatch):
    """As if a torch to come kept it elsewhere: the functions would read whatever lies there."""
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


def test_the_interpreter_is_held_while_tensors_are_checked(monkeypatch, tmp_path):
    """Whoever could run meanwhile could free them. Also where compiled code cannot be kept on disk."""
    kernel = jit.load_module("fastopt.torch.check_tensors")
    assert not kernel.targetoptions.get("nogil")

    class Unwritable:
        py_func, targetoptions, stats = staticmethod(lambda: None), {}, SimpleNamespace(cache_path=tmp_path)

        def compile(self, signature):
            raise OSError("read-only")

    monkeypatch.setattr(jit.files, "warn_unwritable", lambda *given: None)
    assert not jit._compile(Unwritable(), (), tmp_path / "x.py").targetoptions["nogil"]
    Unwritable.targetoptions = {"nogil": True}
    assert jit._compile(Unwritable(), (), tmp_path / "x.py").targetoptions["nogil"]


@compiled_only
def test_torchs_functions_are_tried_on_tensors_that_no_mode_makes_fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    c_abi.functions.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        assert c_abi.functions() is not None
