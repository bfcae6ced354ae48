"""fastopt.update at its boundary: what it adopts without a copy, what it refuses, and that refusals write nothing."""

import array
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastopt
from fastopt import BackendError, FastoptError, LayoutError, SettingError


class Lends:
    """An object that is no array but speaks DLPack."""

    def __init__(self, inner: np.ndarray, device: tuple[int, int] = (1, 0)):
        self.inner, self.device = inner, device

    def __dlpack__(self, **options: Any):
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class Shaped(Lends):
    """A lender that names its shape in its own way."""

    @property
    def shape(self):
        return list(self.inner.shape)


class Raises(Lends):
    def __dlpack__(self, **options: Any):
        raise RuntimeError("cannot export a tensor that requires grad")


def ones(n: int = 6, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(n, dtype)


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


ADAM = fastopt.Adam()
LONG = ones(20)


def adam(**changes: Any) -> dict[str, Any]:
    return {"p": ones(), "g": ones(), "m": ones(), "v": ones(), **changes}


def without(name: str) -> dict[str, Any]:
    return {k: a for k, a in adam().items() if k != name}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "not a mapping": (lambda: [ones(), ones()], "go by name"),
    "nothing": (dict, "'p' is missing"),
    "no gradient": (lambda: without("g"), "'g' is missing"),
    "no state": (lambda: without("v"), "'v' is missing"),
    "misspelt": (lambda: {**without("v"), "V": ones()}, "'v' is missing"),
    "unknown": (lambda: adam(vmax=ones()), "there is no buffer 'vmax'"),
    "too short": (lambda: adam(g=ones(5)), "'g' has another shape than the parameter"),
    "other shape": (lambda: adam(g=ones().reshape(2, 3)), "'g' has another shape"),
    "other type": (lambda: adam(m=ones(dtype=np.float64)), "'m' has another precision than the parameter"),
    "integers": (lambda: adam(g=np.ones(6, np.int32)), "cannot be updated in place"),
    "complex": (lambda: adam(p=np.ones(6, complex)), "cannot be updated in place"),
    "objects": (lambda: adam(p=np.array([None] * 6)), "cannot be updated in place"),
    "big-endian": (lambda: adam(p=np.ones(6, ">f4")), "other byte order"),
    "strided": (lambda: adam(v=ones(12)[::2]), "not one contiguous run"),
    "reversed": (lambda: adam(m=ones()[::-1]), "not one contiguous run"),
    "broadcast": (lambda: adam(g=np.broadcast_to(np.float32(1), (6,))), "not one contiguous run"),
    "column order": (lambda: {k: np.asfortranarray(np.ones((2, 3), np.float32)) for k in "pgmv"}, "in C order"),
    "misaligned": (lambda: adam(p=np.zeros(25, np.uint8)[1:].view(np.float32)), "misaligned"),
    "read-only parameter": (lambda: adam(p=read_only(ones())), "'p' is read-only"),
    "read-only state": (lambda: adam(m=read_only(ones())), "'m' is read-only"),
    "bytes": (lambda: adam(m=np.frombuffer(bytes(24), np.float32)), "'m' is read-only"),
    "the same twice": (lambda: adam(m=LONG[:6], v=LONG[:6]), "'m' and 'v' overlap"),
    "overlapping": (lambda: adam(p=LONG[:6], g=LONG[5:11]), "'p' and 'g' overlap"),
    "a list": (lambda: adam(g=[1.0] * 6), "does not expose its memory"),
    "a number": (lambda: adam(p=1.0), "does not expose its memory"),
    "None": (lambda: adam(g=None), "does not expose its memory"),
    "masked": (lambda: adam(p=np.ma.ones(6, np.float32)), "masked"),
    "other shape, lent": (lambda: adam(g=Shaped(ones().reshape(2, 3))), "'g' has another shape"),
    "on another device": (lambda: adam(p=Lends(ones(), (7, 1))), "Vulkan device 1"),
    "GPU gradient": (lambda: adam(g=Lends(ones(), (10, 0))), "ROCm device 0"),
    "requires grad": (lambda: adam(p=Raises(ones())), "requires grad"),
    "read-only DLPack": (lambda: adam(v=Lends(read_only(ones()))), "'v' (is read-only|does not expose)"),
    "read-only memory": (lambda: adam(v=memoryview(read_only(ones()).data)), "'v' is read-only"),
    "array of ints": (lambda: adam(p=array.array("i", [1] * 6)), "cannot be updated in place"),
}


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", REFUSED)
def test_bad_buffers_are_refused_and_nothing_is_written(name, backend):
    make, message = REFUSED[name]
    buffers = make()
    arrays = [a for a in (buffers.values() if isinstance(buffers, dict) else buffers) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    with pytest.raises(LayoutError, match=message):
        fastopt.update(ADAM, 1, buffers, backend=backend)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("t", [0, -1, 1.0, "1", None, True, np.float64(1), 2**63])
def test_t_counts_from_one(t):
    buffers = adam()
    with pytest.raises(SettingError, match=r"update: t"):
        fastopt.update(ADAM, t, buffers)
    assert np.all(buffers["p"] == 1)


SEEDS = [{"seed": seed} for seed in (1.5, None, True, 2**64, -(2**63) - 1)]
OFFSETS = [{"offset": offset} for offset in (-1, 2**62, 0.5, np.arange(2))]


@pytest.mark.parametrize("options", SEEDS + OFFSETS, ids=str)
def test_seed_and_offset_are_integers_in_their_range(options):
    with pytest.raises(SettingError, match=next(iter(options))):
        fastopt.update(ADAM, 1, adam(), **options)


@pytest.mark.parametrize(("first", "second"), [(-1, 2**64 - 1), (-(2**63), 2**63)])
def test_a_seed_is_64_bits_with_a_sign_or_without(first, second):
    p, q = np.zeros(9), np.zeros(9)
    for seed, x in ((first, p), (second, q)):
        fastopt.update(fastopt.GradientNoise(fastopt.SGD()), 1, {"p": x, "g": np.zeros(9)}, seed=seed)
    assert np.array_equal(p, q)
    assert np.all(p != 0)


@pytest.mark.parametrize("backend", ["gpu", "CUDA", "", None, 1])
def test_unknown_backends_are_refused(backend):
    with pytest.raises(BackendError, match="no such backend"):
        fastopt.update(ADAM, 1, adam(), backend=backend)


def test_errors_say_where_what_got_expected_and_what_to_do():
    with pytest.raises(FastoptError) as caught:
        fastopt.update(ADAM, 1, {**without("v"), "w": ones()})
    assert str(caught.value) == (
        "update(Adam): the buffer 'v' is missing.\n"
        "  got       p, g, m, w\n"
        "  expected  p, g, m, v\n"
        "  do        use one of 'v'"
    )


def _memmap(a: np.ndarray) -> np.memmap:
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file alive
        result = np.memmap(file, np.float32, "w+", shape=a.shape)
    result[...] = a
    return result


LENDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "DLPack": Lends,
    "memoryview": lambda a: a.data,
    "array.array": lambda a: array.array("f", a.tolist()),
    "memmap": _memmap,
    "NumPy subclass": lambda a: a.view(np.recarray),
}


@pytest.mark.parametrize("name", LENDERS)
def test_memory_of_others_is_updated_in_place_without_a_copy(name):
    lend = LENDERS[name]
    expected, given = adam(), {k: lend(a) for k, a in adam().items()}
    fastopt.update(ADAM, 1, expected, backend="reference")
    fastopt.update(ADAM, 1, given)
    for key, value in given.items():
        result = np.asarray(value.inner if isinstance(value, Lends) else value)
        assert result.tolist() == expected[key].tolist()


def test_a_shape_is_that_of_the_memory_and_not_what_its_lender_says():
    expected, given = adam(), adam(g=Shaped(ones()), m=Shaped(ones()))
    fastopt.update(ADAM, 1, expected)
    fastopt.update(ADAM, 1, given)
    assert given["p"].tolist() == expected["p"].tolist()
    assert given["m"].inner.tolist() == expected["m"].tolist()


def test_torch_tensors_are_updated_in_place():
    torch = pytest.importorskip("torch", reason="torch is not installed; DLPack itself is tested above")
    expected = adam()
    tensors = {k: torch.ones(6) for k in "pgmv"}
    fastopt.update(ADAM, 1, expected)
    fastopt.update(ADAM, 1, tensors)
    assert all(tensors[k].tolist() == expected[k].tolist() for k in "pgmv")
    with pytest.raises(LayoutError, match="does not expose its memory"):
        fastopt.update(ADAM, 1, {**tensors, "p": torch.ones(6, requires_grad=True)})


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (3, 4, 5)])
def test_any_shape_is_flat_memory(shape):
    buffers = {k: np.full(shape, 2.0) for k in "pgmv"}
    fastopt.update(ADAM, 1, buffers)
    assert buffers["p"].shape == shape
    flat = {k: np.full(1, 2.0) for k in "pgmv"}
    fastopt.update(ADAM, 1, flat)
    assert np.all(buffers["p"] == flat["p"][0])


def test_a_read_only_gradient_is_fine():
    buffers = adam(g=read_only(ones()))
    fastopt.update(ADAM, 1, buffers)
    assert np.all(buffers["p"] != 1)


def test_t_may_be_a_numpy_integer():
    first, second = adam(), adam()
    fastopt.update(ADAM, np.int64(3), first)  # type: ignore[arg-type]
    fastopt.update(ADAM, 3, second)
    assert first["p"].tolist() == second["p"].tolist()


@pytest.mark.parametrize("storage", ["f32", "mixed_f16", "split"])
def test_the_gradient_of_a_number_may_be_a_numpy_scalar_of_its_type(storage):
    opt = fastopt.Optimizer(fastopt.SGD(lr=0.5), {"scale": np.array(1.0, np.float32)}, storage=storage)
    kind = opt.grads["scale"].dtype.type
    opt.step({"scale": kind(0.5)})
    assert opt.master()["scale"] == 0.75
    with pytest.raises(fastopt.LayoutError, match="the buffer 'p'"):
        fastopt.update(fastopt.SGD(), 1, {"p": np.float32(1.0), "g": np.float32(1.0)})
