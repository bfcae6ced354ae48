"""The stateless surface: one step on the caller's buffers, checked, in place and never on a copy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.arrays import adopt, describe, device_of, library_of, library_on
from fastopt.arrays.library import CPU, Array
from fastopt.checks import integer, seed_number
from fastopt.errors import FastoptError, LayoutError, SettingError, suggest
from fastopt.kernels.backends import bind, choose
from fastopt.kernels.compiler.layout import layout
from fastopt.kernels.compiler.plan import plan
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.formats import FULL, STORAGES, TILE
from fastopt.kernels.launch import Rows, run
from fastopt.kernels.rules.rule import Rule, require_rule, signature
from fastopt.store import Extents


def update(
    rule: Rule,
    t: int,
    buffers: Mapping[str, Any],
    *,
    backend: str = "auto",
    seed: int = 0,
    offset: int = 0,
    stream: Any = None,
    storage: str | Mapping[str, str] | None = None,
) -> None:
    """Take step `t` of `rule` on `buffers` in place, in one fused pass. Stateless: the caller owns the buffers.

    Args:
        rule: any rule, for example `fastopt.Adam(lr=1e-3)`, or the user's own.
        t: number of this step, 1, 2, …
        buffers: the parameter "p", the gradient "g" and the rule's state by name ("m", "v", …): all float64, or
            any mix of float32, float16 and bfloat16. Of one shape, C-contiguous, writable (all but "g") and not
            overlapping: NumPy arrays or any object that exposes memory of the CPU by DLPack or the buffer protocol; or,
            all on one CUDA device, CuPy arrays or any object with DLPack or `__cuda_array_interface__`. Nothing is
            copied; state starts at zero unless the rule says otherwise.
        backend: "auto", "cpu" (compiled), "reference" (NumPy) or "cuda". Auto follows where the arrays live.
        seed: seed of gradient noise, used by rules that have some; any integer of 64 bits.
        offset: index of the first element, for noise that does not depend on how a long buffer is divided; where there
            is noise, or stochastic rounding, a multiple of 256.
        stream: on a device, the stream to launch on, of CuPy, torch or another library; None is CuPy's current one.
            Nothing waits for the device.
        storage: how the buffers are stored, where their types do not say it: a preset ("split", "8bit", …) or a dict
            of formats, as for `Optimizer`. Further planes of a format go by the name of the buffer, a dot and their
            own: "p.low" of split and split24 (uint16, uint8), "p.error" of bf16_kahan, "p.copy" of f32_bf16 and
            f32_f16, all of p's shape, and "m.scale" of f8 and uf8 (uint32, one element per 256).

    Raises:
        LayoutError: a buffer is missing, misspelt, read-only, overlapping, or of the wrong type, shape, order, device.
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
    try:
        if not isinstance(buffers, Mapping):
            raise LayoutError("buffers go by name.", got=type(buffers).__name__, expected='{"p": …, "g": …}')
        device = device_of(buffers.get("p"))
        library = library_on(device)
        with library.running(device, stream):  # other libraries order their stream before the current one
            library.require_not_capturing(
                "which would replay this step's t and learning rate unchanged.",
                "call opt.capturable(steps) before the capture: then they advance on the device",
            )
            _update(rule, t, buffers, backend, seed, offset, storage)
    except FastoptError as error:
        error.where = error.where or "update"
        raise


def _update(rule: Rule, t: int, buffers: Mapping[str, Any], backend: str, seed: int, offset: int, storage: Any) -> None:
    for name in ("p", "g"):
        if name not in buffers:
            raise LayoutError(f"the buffer {name!r} is missing.", got=", ".join(map(str, buffers)) or "none")
    given = {  # the first line of `adopt`, written out: its calls would be a microsecond of 30
        name: array if type(array) is np.ndarray else adopt(array, name, written=name != "g")
        for name, array in buffers.items()
    }
    planned = plan(rule, _storage(rule, given, storage))
    program = planned.program
    arrays = _ordered(program, given)
    library = library_of(arrays[0])
    addresses = [library.address(a) for a in arrays]
    if pair := Extents(addresses, [a.nbytes for a in arrays]).overlap:
        first, second = (program.buffers[k].name for k in pair)
        raise LayoutError(f"the buffers {first!r} and {second!r} overlap.", do="give each buffer its own memory")
    t = integer("t", t, 1, 2**63, do="pass t=1 at the first step")
    seed, offset = seed_number(seed), integer("offset", offset, 0, 2**62)
    if program.noise and offset % TILE:
        what = "the offset of noise or stochastic rounding is no multiple of a tile."
        raise SettingError(what, got=offset, expected=f"a multiple of {TILE}")
    device = library.device(arrays[0])
    shapes = [given["p"].shape] if program.matrices else None
    rows = Rows([arrays[0].size], [offset], [addresses], arrays, device.number, shapes=shapes)
    launch = bind(choose(backend, str(device)), program, rows)
    run(launch.calls(planned.keys(seed, t), planned.scalars(t)))
    if (torch := sys.modules.get("torch")) is not None:  # so that autograd refuses to use what it saved of them before
        tensors = [x for name, x in buffers.items() if name != "g" and isinstance(x, torch.Tensor)]
        torch.autograd.graph.increment_version(tensors)


def _storage(rule: Rule, given: Mapping[str, Array], storage: Any) -> Any:
    """Return the storage for `plan`: as asked for, the type that all buffers share, or the format of each type."""
    if storage is not None:
        return tuple(layout(rule, storage).items())
    first = given["p"].dtype
    if first in FULL and all(array.dtype == first for array in given.values()):
        return first
    require_rule(rule)
    found = {b: _FORMATS.get(given[b].dtype.name) for b in signature(rule).buffers if b in given}
    for b, name in found.items():
        if name is None:
            do = "pass storage= to say which format these integers encode" if given[b].dtype.kind == "u" else None
            raise LayoutError(
                f"the buffer {b!r} has a type that cannot be updated in place.",
                got=describe(given[b]),
                expected=", ".join(_FORMATS),
                do=do,
            )
        if STORAGES[name].computes != STORAGES[found["p"] or "f32"].computes:
            own = f"{describe(given['p'])}, as p"
            what = f"the buffer {b!r} has another precision than the parameter."
            raise LayoutError(what, got=describe(given[b]), expected=own)
    return tuple(layout(rule, found).items())


_FORMATS = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}


def _ordered(program: Program, given: Mapping[str, Array]) -> list[Array]:
    """Check the arrays and return them flat, in the order of `program.buffers`."""
    expected = [b.name for b in program.buffers]
    unknown = [str(name) for name in given if name not in expected]
    missing = [name for name in expected if name not in given]
    if unknown or missing:
        what = f"the buffer {missing[0]!r} is missing." if missing else f"there is no buffer {unknown[0]!r}."
        raise LayoutError(
            what,
            got=", ".join(map(str, given)),
            expected=", ".join(expected),
            do=suggest(unknown[0], missing or expected) if unknown else _at_first(program, given["p"], missing[0]),
            where=f"update({program.rule})",
        )
    p, library = given["p"], library_of(given["p"])
    arrays = []
    for b in program.buffers:
        array = given[b.name]
        own = library_of(array)
        own.require_in_place(array, b.name, written=b.written)
        shape = (b.size(p.size),) if b.tiled else p.shape
        if array.dtype != b.dtype and array.dtype.name == b.view:
            array = array.view(b.dtype)
        if array.dtype != b.dtype or array.shape != shape or own.device(array) != library.device(p):
            device, dtype = library.device(p), b.view or str(b.dtype)
            like = f"{dtype}{list(shape)}" + (f" on {device}" if device != CPU else "")
            do = None
            if array.shape != shape:
                wrong = "has another shape than the parameter" if shape == p.shape else "has the wrong shape"
            elif array.dtype != b.dtype:
                wrong = "has the wrong dtype"
                do = f"convert it, or say by storage={{{b.name!r}: …}} how it is stored" if b.name == b.buffer else None
            else:
                wrong, do = "is on another device than the parameter", "copy it there"
            raise LayoutError(f"the buffer {b.name!r} {wrong}.", got=describe(array), expected=like, do=do)
        arrays.append(array if array.ndim == 1 else array.reshape(-1))
    return arrays


def _at_first(program: Program, p: Array, name: str) -> str:
    """Say what to pass for a missing buffer at the first step."""
    (b,) = [b for b in program.buffers if b.name == name]
    if b.buffer not in program.state:
        kind = b.view or b.dtype
        return f"fastopt.Optimizer makes these planes itself; here, pass the {kind} array that belongs to {b.buffer!r}"
    return f"pass np.zeros({b.size(p.size) if b.tiled else p.shape}, np.{b.dtype}) as {name!r} at first"
