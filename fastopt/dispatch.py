"""From arrays to a backend: what arrived, whether it may be updated in place, and who updates it. Never a copy."""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt.devices import (
    CPU,
    CUDA,
    address,
    bfloat16,
    device,
    device_of,
    is_cupy,
    place,
    require_no_stream,
    require_not_frozen,
    running,
    view,
)
from fastopt.errors import BackendError, FastoptError, LayoutError, SettingError, explain, suggest
from fastopt.kernels.form import require_rule
from fastopt.kernels.noise import noise_keys
from fastopt.kernels.program import Program, formats, parameters, plan
from fastopt.kernels.storage import NAMES, PRESETS, STORAGES, TILE

BACKENDS = ("auto", "reference", "cpu", "cuda")

# DLPack's numbers for kinds of memory; those of CUDA's are in `devices`.
_CPU = (1, 3)  # the second is pinned by CUDA, and the CPU's all the same
_DEVICES = {4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}


def update(
    rule: Any,
    t: int,
    buffers: Mapping[str, Any],
    *,
    backend: str = "auto",
    seed: int = 0,
    offset: int = 0,
    stream: Any = None,
    storage: str | Mapping[str, str] | None = None,
) -> None:
    """Take step `t` of `rule` on `buffers` in place, in one fused pass. Stateless: the caller keeps the buffers.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        t: number of this step, 1, 2, …
        buffers: the parameter "p", the gradient "g" and the rule's state by name ("m", "v", …): float64, or each
            float32, float16 or bfloat16. Of one shape, C-contiguous, writable (all but "g") and not overlapping: NumPy
            arrays or whatever on the CPU speaks DLPack or the buffer protocol; or, all on one CUDA device, CuPy arrays
            or whatever speaks DLPack or `__cuda_array_interface__`. Nothing is copied; state starts at zero unless the
            rule says otherwise.
        backend: "auto", "cpu" (compiled), "reference" (NumPy) or "cuda". Auto follows where the arrays live.
        seed: seed of gradient noise, used by rules that have some; any integer of 64 bits.
        offset: index of the first element, for noise that does not depend on how a long buffer is divided; where there
            is noise, or stochastic rounding, a multiple of 256.
        stream: on a device, the stream to launch on, of CuPy, torch or another library; None is CuPy's current one.
            Nothing waits for the device.
        storage: how the buffers are kept, where their types do not say it: a preset ("split", "8bit", …) or a dict of
            formats, as for `Optimizer`. What a format keeps besides goes by the name of the buffer, a dot and its own:
            "p.low" of split and split24 (uint16, uint8), "p.error" of bf16_kahan, "p.copy" of f32_bf16 and f32_f16, all
            of p's shape, and "m.scale" of f8 and uf8 (uint32, one element for every 256).

    Raises:
        LayoutError: a buffer is missing, misspelt, read-only, overlapping, or of the wrong type, shape, order, place.
        SettingError: t, seed, offset or a scheduled setting is out of its range.
        RuleError: the rule cannot be traced.
        BackendError: the backend does not exist, or is not for where the buffers live; something of CUDA is missing.
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
    found = device_of(buffers.get("p"), where)
    if found is None:
        require_no_stream(stream, where)
        _update(rule, t, buffers, backend, seed, offset, storage)
        return
    with running(found, stream, where):  # lenders order their stream before the current one
        require_not_frozen(where)
        _update(rule, t, buffers, backend, seed, offset, storage)


def _update(rule: Any, t: int, buffers: Mapping[str, Any], backend: str, seed: int, offset: int, storage: Any) -> None:
    where = "update"
    for name in ("p", "g"):
        if name not in buffers:
            raise LayoutError(
                explain(where, f"the buffer {name!r} is missing.", got=", ".join(map(str, buffers)) or "none")
            )
    given = {
        name: array if type(array) is np.ndarray else adopt(array, name, where, written=name != "g")
        for name, array in buffers.items()
    }
    program, scalars = plan(rule, _kept(rule, given, storage))
    arrays = _collect(program, given, where)
    require_disjoint(dict(zip([b.name for b in program.buffers], arrays, strict=True)), where)
    t = whole(t, "t", where, 1, 63, do="pass t=1 at the first step")
    seed, offset = seed_number(seed, where), whole(offset, "offset", where, 0, 62)
    if program.noise and offset % TILE:
        what, expected = "the offset of noise or stochastic rounding is no multiple of a tile.", f"a multiple of {TILE}"
        raise SettingError(explain(where, what, got=offset, expected=expected))
    chosen = choose(backend, place(arrays[0]), where)
    launch = bind(program, rule, arrays, chosen)
    launch((*noise_keys(seed, t), offset) if program.noise else (), scalars(t))


def _kept(rule: Any, given: Mapping[str, Any], storage: Any) -> Any:
    """Give what `plan` wants to know of the buffers' formats: their type if they share one, or each one's format."""
    if storage is not None:
        require_rule(rule, "update")
        return tuple(layout([rule], storage, "update")[0].items())
    first = given["p"].dtype
    if first in NAMES:
        for array in given.values():
            if array.dtype != first:
                break
        else:
            return first
    require_rule(rule, "update")
    names = parameters(rule).buffers
    found = {b: _FORMATS.get(given[b].dtype.name) for b in names if b in given}
    for b, name in found.items():
        if name is None:
            what, expected = f"the buffer {b!r} has a type that cannot be updated in place.", ", ".join(_FORMATS)
            do = "say by storage= how integers hold the values" if given[b].dtype.kind == "u" else None
            raise LayoutError(explain("update", what, got=describe(given[b]), expected=expected, do=do))
        if STORAGES[name].computes != STORAGES[found["p"] or "f32"].computes:
            what, own = f"the buffer {b!r} does not match the parameter.", f"{describe(given['p'])}, as p"
            raise LayoutError(explain("update", what, got=describe(given[b]), expected=own))
    return tuple(formats(rule, found).items())


_FORMATS = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}


def layout(rules: Sequence[Any], storage: Any, where: str) -> list[dict[str, str]]:
    """Give the format of each buffer of each rule that a storage, a preset's name or a dict, means.

    Raises:
        SettingError: there is no such preset, format or buffer, or it does not hold what it is to hold.

    """
    buffers = [parameters(rule).buffers for rule in rules]
    if isinstance(storage, str):
        if storage not in PRESETS:
            what, do = "there is no such storage.", suggest(storage, list(PRESETS))
            raise SettingError(explain(where, what, got=repr(storage), do=do))
        preset = PRESETS[storage]
        return [formats(r, preset.formats(r, names)) for r, names in zip(rules, buffers, strict=True)]
    if not isinstance(storage, Mapping):
        expected = f'{", ".join(PRESETS)}; or for example {{"p": "split", "g": "bf16", "m": "f8", "v": "uf8"}}'
        raise SettingError(explain(where, "a storage is a name or a dict.", got=repr(storage)[:60], expected=expected))
    known = sorted({b for names in buffers for b in names})
    for b in storage:
        if b not in known:
            raise SettingError(explain(f"{where}, storage", f"there is no buffer {b!r}.", do=suggest(str(b), known)))
    return [
        formats(r, {b: x for b, x in storage.items() if b in names}) for r, names in zip(rules, buffers, strict=True)
    ]


def _collect(program: Program, given: Mapping[str, Any], where: str) -> list[Any]:
    expected = [b.name for b in program.buffers]
    unknown = [str(name) for name in given if name not in expected]
    missing = [name for name in expected if name not in given]
    if unknown or missing:
        what = f"the buffer {missing[0]!r} is missing." if missing else f"there is no buffer {unknown[0]!r}."
        raise LayoutError(
            explain(
                f"{where}({program.rule})",
                what,
                got=", ".join(map(str, given)),
                expected=", ".join(expected),
                do=suggest(unknown[0], missing or expected) if unknown else _first(program, given["p"], missing[0]),
            )
        )
    p = given["p"]
    arrays = []
    for b in program.buffers:
        array = given[b.name]
        require_in_place(array, b.name, where, written=b.written)
        shape = (b.size(p.size),) if b.tiled else p.shape
        if array.dtype != b.dtype and array.dtype.name == b.view:
            array = array.view(b.dtype)
        if array.dtype != b.dtype or array.shape != shape or place(array) != place(p):
            own = f"{b.view or b.dtype}{list(shape)}" + (f" on {place(p)}" if place(p) != CPU else "")
            what = f"the buffer {b.name!r} does not match the parameter."
            raise LayoutError(explain(where, what, got=describe(array), expected=own))
        arrays.append(array if array.ndim == 1 else array.reshape(-1))
    return arrays


def _first(program: Program, p: Any, name: str) -> str:
    """Say what to pass for a missing buffer at the first step."""
    (b,) = [b for b in program.buffers if b.name == name]
    if b.buffer not in program.state:
        return f"fastopt.Optimizer packs parameters; pass the {b.view or b.dtype} array that belongs to {b.buffer!r}"
    return f"pass np.zeros({b.size(p.size) if b.tiled else p.shape}, np.{b.dtype}) as {name!r} at first"


def describe(array: Any) -> str:
    """Name an array's type, shape and, on a device, its place."""
    return f"{array.dtype}{list(array.shape)}" + (f" on {place(array)}" if place(array) != CPU else "")


def require_in_place(array: Any, name: str, where: str, *, written: bool) -> None:
    """Raise a LayoutError unless a NumPy or CuPy array is memory that a step can walk."""
    if not array.dtype.isnative:
        what, got = f"the buffer {name!r} has the other byte order.", f"{array.dtype.str}{list(array.shape)}"
        raise LayoutError(explain(where, what, got=got, do="convert it to the machine's own"))
    flags, on_cpu = array.flags, isinstance(array, np.ndarray)
    aligned = flags.aligned if on_cpu else address(array) % array.itemsize == 0
    if not flags.c_contiguous or not aligned:
        raise LayoutError(
            explain(
                where,
                f"the buffer {name!r} is not one contiguous run of memory in C order.",
                got=f"shape {array.shape} with strides {array.strides} bytes{'' if aligned else ', misaligned'}",
                do="update the array that this is a view of, or keep the parameter in C order",
            )
        )
    if written and on_cpu and not flags.writeable:
        raise LayoutError(
            explain(where, f"the buffer {name!r} is read-only.", do="pass the array that owns the memory")
        )


def adopt(value: Any, name: str, where: str, *, written: bool = False) -> Any:
    """View a foreign object's memory as a NumPy or CuPy array, in whatever order and type it is.

    Raises:
        LayoutError: it does not lend its memory, or not for writing.
        BackendError: it is on a CUDA device and there is no CuPy.

    """
    if isinstance(value, np.ndarray):  # subclasses such as memmap are plain memory; of masked arrays it is only half
        if isinstance(value, np.ma.MaskedArray):
            raise LayoutError(explain(where, f"the buffer {name!r} is a masked array.", do="pass its .data"))
        return value.view(np.ndarray)
    if is_cupy(value):
        return value
    try:
        if hasattr(value, "__dlpack_device__"):
            kind, number = value.__dlpack_device__()
            if kind in _CPU:
                if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # which NumPy's DLPack does not know
                    if value.requires_grad:
                        raise BufferError("it requires a gradient: use tensor.detach()")
                    return np.from_dlpack(value.view(sys.modules["torch"].int16), copy=False).view(bfloat16())
                return np.from_dlpack(value, copy=False)
            if kind not in CUDA:
                got = f"{_DEVICES.get(int(kind), f'device type {int(kind)}')} device {number}"
                what = f"the buffer {name!r} is neither in the CPU's memory nor on a CUDA device."
                raise LayoutError(explain(where, what, got=got))
            return view(value, name, where, written=written)
        if hasattr(value, "__cuda_array_interface__"):
            return view(value, name, where, written=written)
        return np.asarray(memoryview(value))
    except FastoptError:
        raise
    except Exception as error:  # whatever a foreign object raises while it exports its memory
        raise LayoutError(
            explain(
                where,
                f"the buffer {name!r} does not lend its memory: {error}",
                got=type(value).__name__,
                expected="a NumPy or CuPy array, or an object with DLPack or the buffer protocol",
            )
        ) from error


def lend(value: Any, name: str, where: str) -> Any:
    """View a value that is only read, in whatever order its memory is."""
    plain = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
    return value if plain else adopt(value, name, where)


def mapping(value: Any, where: str, what: str) -> dict[str, Any]:
    """Give what goes by name as a dict, or raise a LayoutError."""
    if not isinstance(value, Mapping):
        raise LayoutError(
            explain(where, f"{what} go by name.", got=type(value).__name__, expected="a mapping of names")
        )
    return dict(value)


def require_disjoint(arrays: Mapping[str, Any], where: str) -> None:
    """Raise a LayoutError if any two of these contiguous arrays share memory."""
    places = sorted([(address(a), a.nbytes, name) for name, a in arrays.items() if a.size])
    for (start, size, name), (following, _, other) in pairwise(places):
        if start + size > following:
            raise LayoutError(
                explain(where, f"the buffers {name!r} and {other!r} overlap.", do="give each buffer its own memory")
            )


def choose(backend: str, found: str, where: str) -> str:
    """Give the backend that runs a step over arrays that live at the place `found`, or raise a BackendError."""
    if backend not in BACKENDS:
        raise BackendError(
            explain(where, "there is no such backend.", got=repr(backend), do=suggest(str(backend), list(BACKENDS)))
        )
    if backend == "auto":
        return "cpu" if found == CPU else "cuda"
    if (backend == "cuda") == (found == CPU):
        raise BackendError(
            explain(
                where,
                f"the backend {backend!r} is not for arrays that live there.",
                got=found,
                expected="a CUDA device" if backend == "cuda" else "the CPU's memory",
                do="copy them with cupy.asarray" if backend == "cuda" else "copy them with .get()",
            )
        )
    return backend


def settle(backend: str, values: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Give the backend for parameters with these values, and the CUDA device to keep them on, or None."""
    places = {place(array): name for name, array in values.items()}
    if len(places) > 1:
        got = ", ".join(f"{name!r} on {found}" for found, name in places.items())
        raise LayoutError(explain(where, "the parameters live in different places.", got=got, do="copy them to one"))
    (found,) = places
    if backend == "cuda" and found == CPU:
        return "cuda", device(where)
    chosen = choose(backend, found, where)
    return chosen, next(iter(values.values())).device if chosen == "cuda" else None


def bind(program: Program, rule: Any, arrays: list[Any], backend: str) -> Any:
    """Prepare a step on a backend; importing the backend only now keeps `import fastopt` light."""
    if backend == "reference":
        from fastopt.kernels import reference

        return reference.bind(program, rule, arrays)
    if backend == "cuda":
        from fastopt.kernels import cuda

        return cuda.bind(program, arrays)
    from fastopt.kernels import cpu

    return cpu.bind(program, arrays)


def whole(
    value: Any,
    name: str,
    where: str,
    low: int,
    bits: int,
    *,
    do: str | None = None,
    error: type[FastoptError] = SettingError,
) -> int:
    """Give an integer of at least `low` and below 2**`bits` as a Python int, or raise an error."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number < 1 << bits:
        what, expected = f"{name} is not an integer in its range.", f"an integer of at least {low}, below 2**{bits}"
        raise error(explain(where, what, got=repr(value), expected=expected, do=do))
    return number


def seed_number(seed: Any, where: str, name: str = "seed", error: type[FastoptError] = SettingError) -> int:
    """Give a seed as a Python int that fits 64 bits, with a sign or without, or raise an error."""
    return whole(seed, name, where, -(2**63), 64, error=error)
