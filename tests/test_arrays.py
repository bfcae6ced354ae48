"""Every array library of the table keeps the contract of `fastopt.arrays.library.Library`."""

from __future__ import annotations

import gc
import sys
from typing import Any

import fake_cupy
import numpy as np
import pytest

import fastopt
from fastopt.arrays import LIBRARIES, NumPy, device_of, library_of, library_on
from fastopt.errors import LayoutError
from fastopt.kernels.formats import Plane


def _on_device(values: np.ndarray) -> Any:
    made = sys.modules["cupy"].empty(values.shape, values.dtype)
    made.set(values)
    return made


EXAMPLES: dict[str, Any] = {"NumPy": np.copy, "CuPy": _on_device}
"""Library → what makes one of its arrays of a NumPy array's values."""


@pytest.fixture(params=LIBRARIES, ids=lambda library: type(library).__name__)
def library(request, monkeypatch):
    """Return a library, CuPy with a stand-in for it."""
    if type(request.param).__name__ == "CuPy":
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy.install())
    return request.param


@pytest.fixture
def make(library):
    return EXAMPLES[type(library).__name__]


VALUES = np.arange(1.0, 513.0, dtype=np.float32)


def test_arrays_are_recognized_and_viewed_in_place(library, make):
    value = make(VALUES)
    assert library.owns(value)
    assert not library.owns([1.0])
    array = library.adopt(value, "w", written=True)
    assert library_of(array) is library or library_of(array).device_kind == library.device_kind
    assert device_of(value) == library.device(array) == library.current_device()
    assert (array.dtype, array.shape, array.ndim, array.size, array.nbytes) == (np.float32, (512,), 1, 512, 2048)
    library.write(array, slice(1, 2), np.array([7.0], np.float32))
    again = library.adopt(value, "w", written=True)
    assert library.address(again) == library.address(array)
    assert library.to_numpy(again)[:3].tolist() == [1.0, 7.0, 3.0]
    library.require_in_place(array, "w", written=True)


def test_a_view_keeps_the_memory_alive(library, make):
    array = library.adopt(make(VALUES), "w", written=True)
    gc.collect()
    np.testing.assert_array_equal(library.to_numpy(array), VALUES)


def test_memory_is_allocated_copied_and_read(library, make):
    device = library.current_device()
    assert library_on(device).device_kind == library.device_kind
    for plane in (Plane("", np.dtype(np.float32)), Plane("", np.dtype(np.uint8)), Plane("", np.dtype(np.uint16))):
        made = library.allocate(300, plane, device)
        assert (made.dtype, made.shape) == (plane.dtype, (300,))
        assert not library.to_numpy(made).any()
        assert library.address(made) % 64 == 0
    target = library.allocate(512, Plane("", np.dtype(np.float32)), device)
    for source in (VALUES, library.adopt(make(VALUES), "w", written=False)):
        library.copy(target, source)
        np.testing.assert_array_equal(library.to_numpy(target), VALUES)
        other = library.duplicate(target)
        library.write(target, slice(0, 512), np.zeros(512, np.float32))
        np.testing.assert_array_equal(library.to_numpy(other), VALUES)
    assert library.read(other, slice(2, 4), np.dtype(np.uint32)).tolist() == VALUES[2:4].view(np.uint32).tolist()
    with library.running(device, None):
        library.require_not_capturing("which this test does not do.")
    library.wait(device)


def test_steps_take_and_return_its_arrays(library, make):
    twin = fastopt.Optimizer(fastopt.Momentum(lr=0.5), {"w": VALUES})
    opt = fastopt.Optimizer(fastopt.Momentum(lr=0.5), {"w": make(VALUES)})
    for grads in (VALUES, VALUES[::-1].copy()):
        twin.step({"w": grads})
        opt.step({"w": make(grads)})
    np.testing.assert_array_equal(library.to_numpy(opt.params["w"]), twin.params["w"])
    p, g = make(VALUES), make(VALUES)
    fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
    np.testing.assert_array_equal(library.to_numpy(library.adopt(p, "p", written=False)), VALUES / 2)


def test_whatever_goes_wrong_in_adopting_is_an_error_that_names_the_buffer(monkeypatch):
    class Freed:
        pass

    class Broken(NumPy):
        def owns(self, value):
            return isinstance(value, Freed)

        def adopt(self, value, name, *, written):
            raise ValueError("it was freed")

        def device(self, array):
            return library_of(VALUES).device(VALUES)

    monkeypatch.setattr("fastopt.arrays.LIBRARIES", [*LIBRARIES, Broken()])
    with pytest.raises(LayoutError, match=r"(?s)buffer 'g'.*it was freed.*an array of NumPy, CuPy, Broken"):
        fastopt.update(fastopt.SGD(), 1, {"p": VALUES.copy(), "g": Freed()})
