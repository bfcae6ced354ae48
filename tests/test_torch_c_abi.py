"""Torch's own C functions: found by name, tried before use, called under the interpreter's lock, or done without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_before import WAYS, compiled_only, parameter  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.kernels import cpu  # noqa: E402
from fastopt.torch import native, walks  # noqa: E402


def test_torchs_functions_are_found_where_ci_runs():
    """Not to find them is allowed elsewhere; here it would make every test of the compiled way pass by skipping."""
    import platform

    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("tried on Linux alone")
    assert native.functions() is not None


@compiled_only
@pytest.mark.parametrize("name", [*native._C, *native._CPP])
def test_without_one_of_torchs_functions_the_step_looks_through_python(name, monkeypatch):
    table = "_C" if name in native._C else "_CPP"
    without = {n: x for n, x in getattr(native, table).items() if n != name}
    gone = {"_absent_here": native._C["dim"]} if table == "_C" else {name: ("_absent_here", None)}
    monkeypatch.setattr(native, table, {**without, **gone})
    native.functions.cache_clear()
    try:
        assert native.functions() is None
        p, q = parameter(3), parameter(3)
        ours, theirs = fastopt.torch.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
        assert WAYS[1] in repr(ours)
        for k in range(3):
            for x, opt in ((p, ours), (q, theirs)):
                x.grad = torch.full((3,), 1.0 + k)
                opt.step()
        torch.testing.assert_close(p, q)
    finally:
        native.functions.cache_clear()


@compiled_only
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("is_neg", "_ZN2at6native7is_conjERKNS_6TensorE"),
        ("bump", "_ZN2at6native7is_conjERKNS_6TensorE"),
    ],
)
def test_functions_that_do_something_else_are_found_out(name, other, monkeypatch):
    monkeypatch.setattr(native, "_CPP", {**native._CPP, name: (other, native._CPP[name][1])})
    native.functions.cache_clear()
    try:
        assert native.functions() is None
    finally:
        native.functions.cache_clear()


def test_the_interpreter_is_held_while_tensors_are_looked_at(monkeypatch, tmp_path):
    """Whoever could run meanwhile could free them. Also where compiled code cannot be kept on disk."""
    for name, text in (("look", walks._LOOK), ("bump", walks._BUMP), ("holds", walks._HOLDS)):
        kernel = cpu.load(name, text)
        assert not kernel.targetoptions.get("nogil")

    class Unwritable:
        py_func, targetoptions, stats = staticmethod(lambda: None), {}, SimpleNamespace(cache_path=tmp_path)

        def compile(self, signature):
            raise OSError("read-only")

    monkeypatch.setattr(cpu.files, "warn_unwritable", lambda *given: None)
    assert not cpu._compile(Unwritable(), (), tmp_path / "x.py").targetoptions["nogil"]
    Unwritable.targetoptions = {"nogil": True}
    assert cpu._compile(Unwritable(), (), tmp_path / "x.py").targetoptions["nogil"]


@compiled_only
def test_torchs_functions_are_tried_on_tensors_that_no_mode_makes_fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    native.functions.cache_clear()
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        assert native.functions() is not None
