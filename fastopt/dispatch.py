"""From arrays to a backend: what arrived, whether it may be updated in place, and who updates it. Never a copy."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt.errors import BackendError, LayoutError, SettingError, explain, suggest
from fastopt.kernels.program import Program, host_scalars, trace
from fastopt.kernels.storage import NAMES, noise_keys

BACKENDS = ("auto", "reference", "cpu")

_CPU, _CUDA_PINNED = 1, 3  # DLPack's numbers for memory that the CPU can address
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA managed", 14: "oneAPI"}


def update(
    rule: Any, t: int, buffers: Mapping[str, Any], *, backend: str = "auto", seed: int = 0, offset: int = 0
) -> None:
    """Take step `t` of `rule` on `buffers` in place, in one fused pass. Stateless: the caller keeps the buffers.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        t: number of this step, 1, 2, …
        buffers: the parameter "p", the gradient "g" and the rule's state by name ("m", "v", …). All float32 or all
            float64, of one shape, C-contiguous, writable (all but "g") and not overlapping: NumPy arrays or whatever
            on the CPU speaks DLPack or the buffer protocol. Nothing is copied; state starts at zero unless the rule
            says otherwise.
        backend: "auto", "cpu" (compiled) or "reference" (NumPy). Auto follows where the arrays live.
        seed: seed of gradient noise, used by rules that have some.
        offset: index of the first element, for noise that does not depend on how a long buffer is divided.

    Raises:
        LayoutError: a buffer is missing, misspelt, read-only, overlapping, or of the wrong type, shape, order, place.
        SettingError: t, seed, offset or a scheduled setting is out of its range.
        RuleError: the rule cannot be traced.
        BackendError: the backend does not exist.
        In each case every buffer is as it was.

    Moves `bytes_per_parameter` of the rule times the number of parameters through memory.

    >>> import numpy as np, fastopt
    >>> p, g, m = np.array([1.0, 2.0]), np.array([0.5, -0.5]), np.zeros(2)
    >>> fastopt.update(fastopt.Momentum(lr=1.0, beta=0.5), 1, {"p": p, "g": g, "m": m})
    >>> p, m
    (array([0.75, 2.25]), array([ 0.25, -0.25]))

    """
    where = "update"
    if not isinstance(buffers, Mapping):
        raise LayoutError(
            explain(where, "buffers go by name.", got=type(buffers).__name__, expected='{"p": …, "g": …}')
        )
    for name in ("p", "g"):
        if name not in buffers:
            raise LayoutError(
                explain(where, f"the buffer {name!r} is missing.", got=", ".join(map(str, buffers)) or "none")
            )
    p = flat(buffers["p"], "p", where, written=True)
    program, scalars = plan(rule, p.dtype)
    arrays = _collect(program, buffers, p, where)
    require_disjoint(dict(zip([b.name for b in program.buffers], arrays, strict=True)), where)
    t, seed, offset = step_number(t, where), whole(seed, "seed", where), whole(offset, "offset", where)
    if not 0 <= offset < 2**62:
        raise SettingError(explain(where, "offset is an index.", got=offset, expected="at least 0, below 2⁶²"))
    launch = bind(program, rule, arrays, choose(backend, where))
    launch((*noise_keys(seed, t), offset) if program.noise else (), scalars(t))


def plan(rule: Any, dtype: np.dtype) -> tuple[Program, Callable[[int], tuple[float, ...]]]:
    """Give the program of a rule and the function of t that computes its scalars; remembered while rules come again."""
    try:
        return _plan(rule, dtype)
    except TypeError:  # not hashable, which tracing explains; a RuleError is a TypeError too
        trace(rule, dtype)
        raise


@lru_cache(maxsize=256)
def _plan(rule: Any, dtype: np.dtype) -> tuple[Program, Callable[[int], tuple[float, ...]]]:
    program = trace(rule, dtype)
    return program, host_scalars(program, rule)


def _collect(program: Program, buffers: Mapping[str, Any], p: np.ndarray, where: str) -> list[np.ndarray]:
    expected = [b.name for b in program.buffers]
    unknown = [str(name) for name in buffers if name not in expected]
    missing = [name for name in expected if name not in buffers]
    if unknown or missing:
        what = f"the buffer {missing[0]!r} is missing." if missing else f"there is no buffer {unknown[0]!r}."
        raise LayoutError(
            explain(
                f"{where}({program.rule})",
                what,
                got=", ".join(map(str, buffers)),
                expected=", ".join(expected),
                do=suggest(unknown[0], missing or expected)
                if unknown
                else f"pass zeros like p as {missing[0]!r} at first",
            )
        )
    shape = getattr(buffers["p"], "shape", p.shape)
    arrays = [p]
    for b in program.buffers[1:]:
        array = flat(buffers[b.name], b.name, where, written=b.written)
        found = getattr(buffers[b.name], "shape", array.shape)
        if array.dtype != p.dtype or found != shape:
            raise LayoutError(
                explain(
                    where,
                    f"the buffer {b.name!r} does not match the parameter.",
                    got=f"{array.dtype}{list(found)}",
                    expected=f"{p.dtype}{list(shape)}, as p",
                )
            )
        arrays.append(array)
    return arrays


def flat(value: Any, name: str, where: str, *, written: bool) -> np.ndarray:
    """View an array, or what speaks DLPack or the buffer protocol, as a flat NumPy array on the same memory.

    Raises:
        LayoutError: it cannot be viewed without a copy, or must be written and is read-only.

    """
    array = value if type(value) is np.ndarray else adopt(value, name, where)
    if array.dtype not in NAMES or not array.dtype.isnative:
        raise LayoutError(
            explain(
                where,
                f"the buffer {name!r} has a type that cannot be updated in place.",
                got=f"{array.dtype.str if not array.dtype.isnative else array.dtype}{list(array.shape)}",
                expected=" or ".join(str(d) for d in NAMES),
            )
        )
    flags = array.flags
    if not flags.c_contiguous or not flags.aligned:
        raise LayoutError(
            explain(
                where,
                f"the buffer {name!r} is not one contiguous run of memory in C order.",
                got=f"shape {array.shape} with strides {array.strides} bytes{'' if flags.aligned else ', misaligned'}",
                do="update the array that this is a view of, or keep the parameter in C order",
            )
        )
    if written and not flags.writeable:
        raise LayoutError(
            explain(where, f"the buffer {name!r} is read-only.", do="pass the array that owns the memory")
        )
    return array if array.ndim == 1 else array.reshape(-1)


def adopt(value: Any, name: str, where: str) -> np.ndarray:
    """View a foreign object's memory as a NumPy array, in whatever order and type it is, or raise a LayoutError."""
    if isinstance(value, np.ndarray):  # subclasses: memmap is fine, masked arrays and matrices are not plain memory
        if isinstance(value, np.ma.MaskedArray):
            raise LayoutError(explain(where, f"the buffer {name!r} is a masked array.", do="pass its .data"))
        return value.view(np.ndarray)
    try:
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            if kind not in (_CPU, _CUDA_PINNED):
                place = f"{_DEVICES.get(int(kind), f'device type {int(kind)}')} device {number}"
                raise LayoutError(
                    explain(where, f"the buffer {name!r} is not in the CPU's memory.", got=place, expected="the CPU")
                )
            return np.from_dlpack(value, copy=False)
        return np.asarray(memoryview(value))
    except LayoutError:
        raise
    except Exception as error:  # whatever a foreign object raises while it exports its memory
        raise LayoutError(
            explain(
                where,
                f"the buffer {name!r} does not lend its memory: {error}",
                got=type(value).__name__,
                expected="a NumPy array, or an object with DLPack or the buffer protocol",
            )
        ) from error


def require_disjoint(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise a LayoutError if any two of these contiguous arrays share memory."""
    places = sorted([(a.__array_interface__["data"][0], a.nbytes, name) for name, a in arrays.items() if a.size])
    for (start, size, name), (following, _, other) in pairwise(places):
        if start + size > following:
            raise LayoutError(
                explain(where, f"the buffers {name!r} and {other!r} overlap.", do="give each buffer its own memory")
            )


def choose(backend: str, where: str) -> str:
    """Give the backend that runs a step over arrays on the CPU."""
    if backend not in BACKENDS:
        raise BackendError(
            explain(where, "there is no such backend.", got=repr(backend), do=suggest(str(backend), list(BACKENDS)))
        )
    return "cpu" if backend == "auto" else backend


def bind(program: Program, rule: Any, arrays: list[np.ndarray], backend: str) -> Callable[[tuple, tuple], None]:
    """Prepare a step on a backend; importing the backend only now keeps `import fastopt` light."""
    if backend == "reference":
        from fastopt.kernels import reference

        return reference.bind(program, rule, arrays)
    from fastopt.kernels import cpu

    return cpu.bind(program, arrays)


def whole(value: Any, name: str, where: str) -> int:
    """Give an integer argument as a Python int, or raise a SettingError."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise SettingError(explain(where, f"{name} is not an integer.", got=repr(value))) from None


def step_number(t: Any, where: str) -> int:
    """Give t as a Python int of at least 1, or raise a SettingError."""
    t = whole(t, "t", where)
    if not 1 <= t < 2**63:
        raise SettingError(
            explain(where, "t counts steps from 1.", got=t, expected="≥ 1, below 2⁶³", do="pass t=1 at the first step")
        )
    return t
