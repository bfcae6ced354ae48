"""What arrives by name at the surface: parameters' first values, gradients, entries of checkpoints; checked, viewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.arrays import adopt, describe, library_of
from fastopt.arrays.library import Array
from fastopt.errors import LayoutError, suggest
from fastopt.kernels.formats import FULL


def by_name(value: Any, what: str) -> dict[str, Any]:
    """Return what goes by name as a dict, or raise a LayoutError."""
    if not isinstance(value, Mapping):
        raise LayoutError(f"{what} go by name.", got=type(value).__name__, expected="a mapping of names")
    return dict(value)


def first_values(params: Any) -> dict[str, Array]:
    """View the parameters' first values as arrays, by name, or raise a LayoutError."""
    values, given = {}, by_name(params, "parameters")
    for name, value in given.items():
        if not isinstance(name, str):
            raise LayoutError("a parameter's name is a string.", got=repr(name))
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise LayoutError("a parameter's name has characters that UTF-8 cannot hold, nor a file.", got=repr(name))
        if f"{name}.npy" in given:
            what = f"the names {name!r} and {name + '.npy'!r} are the same to np.load."
            raise LayoutError(what, do="rename one of them")
        values[name] = array = adopt(value, name)
        if array.dtype.name not in ("float32", "float64", "float16", "bfloat16"):
            what = f"the parameter {name!r} has the wrong type."
            raise LayoutError(what, got=str(array.dtype), expected="floating-point numbers")
    if not values:
        raise LayoutError("there are no parameters.", got="{}", expected='for example {"w": w, "b": b}')
    devices = {library_of(array).device(array): name for name, array in values.items()}
    if len(devices) > 1:
        got = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise LayoutError("the parameters live on different devices.", got=got, do="copy them to one")
    return values


def common_precision(values: Mapping[str, Array]) -> np.dtype:
    """Return the type that these values share, or raise a LayoutError."""
    dtypes = {array.dtype for array in values.values()}
    first = {dtype: next(name for name, a in values.items() if a.dtype == dtype) for dtype in dtypes}
    for dtype, name in first.items():
        if dtype not in FULL:
            what, expected = f"the parameter {name!r} has the wrong type.", " or ".join(str(d) for d in FULL)
            do = "choose how parameters are stored, for example storage='split' or 'bf16'"
            raise LayoutError(what, got=str(dtype), expected=expected, do=do)
    if len(dtypes) > 1:
        raise LayoutError(
            "the parameters have different precisions.",
            got=", ".join(f"{name!r} {dtype}" for dtype, name in first.items()),
            do='convert them, or choose one for all with storage="f32" or "f64"',
        )
    return dtypes.pop()


def require_names(given: Mapping, own: Mapping, what: str) -> None:
    """Raise a LayoutError unless the names are the same."""
    missing = [name for name in own if name not in given]
    unknown = [str(name) for name in given if name not in own]
    if unknown:
        raise LayoutError(f"{what} {unknown[0]!r} is unknown.", do=suggest(unknown[0], missing or list(own)))
    if missing:
        raise LayoutError(f"{what} {missing[0]!r} is missing.", got=f"{len(given)} of {len(own)} names")


def require_like(array: Array, own: Array, name: str, *, same_device: bool = False, do: str = "") -> None:
    """Raise a LayoutError unless an array has the shape and dtype of another, and is on its device if it must be.

    `do` says what to do about another dtype, besides a conversion.
    """
    convert: str | None = f"convert it yourself, with .astype({str(own.dtype)!r}){do}"
    if array.shape != own.shape:
        wrong, convert = "has the wrong shape", None
    elif array.dtype != own.dtype:
        wrong = "has the wrong dtype"
    elif same_device and library_of(array).device(array) != library_of(own).device(own):
        wrong, convert = "is on another device", "copy it there yourself"
    else:
        return
    raise LayoutError(f"{name} {wrong}.", got=describe(array), expected=describe(own), do=convert)
