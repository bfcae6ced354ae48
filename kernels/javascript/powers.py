"""The powers and cosines that Python gives, for JavaScript, whose own differ in the last bit.

Python's x ** y is the power function of the C library, V8's Math.pow another one: of 15,015 powers βᵗ they differ in
one of twelve. So integer powers of chosen bases are computed exactly in JavaScript, with integers of any length, and
rounded once. The C library nearly always returns that correctly rounded result too; where it does not, here, on this
machine, the power is shipped in a table. Powers with other exponents and cosines are always shipped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache
from importlib.resources import files

import numpy as np

from fastopt.errors import SettingError


@cache
def misrounded(base: float, largest: int) -> tuple[tuple[float, int, float], ...]:
    """Return (base, k, base ** k) for each k up to `largest` where Python's power is not correctly rounded."""
    exact, step, found = Fraction(1), Fraction(base), []
    for k in range(largest + 1):
        if base**k < np.finfo(float).tiny:
            what = "a power is below the normal numbers, where JavaScript does not compute it exactly."
            raise SettingError(what, got=f"{base!r} ** {k}", do="leave out this base, or take fewer steps")
        if float(exact) != base**k:
            found.append((base, k, base**k))
        exact *= step
    return tuple(found)


def print_tables(bases: Mapping[float, int], others: Iterable[tuple[float, float]] = (), *, cosines: int = 1) -> str:
    """Print `host.js` and its tables.

    Args:
        bases: positive numbers x, and for each the largest k such that x ** k is needed.
        others: pairs (x, y) of which x ** y is needed too.
        cosines: n, where cos(π k / n) is needed for k = 0, 1, … n.

    Raises:
        SettingError: one of the powers of `bases` is below the normal float64 numbers.

    """
    rows = [row for base, largest in bases.items() for row in misrounded(base, largest)]
    rows += [(x, y, x**y) for x, y in others]
    powers = {"bases": sorted(bases.items()), "others": packed(rows)}
    known = {"n": cosines, "values": packed([math.cos(math.pi * (k / cosines)) for k in range(cosines + 1)])}
    text = (files("fastopt.kernels.javascript") / "host.js").read_text(encoding="utf-8")
    return f"const KNOWN_POWERS = {json.dumps(powers)};\nconst KNOWN_COSINES = {json.dumps(known)};\n{text}"


def packed(numbers: Iterable) -> str:
    """Write float64 numbers as base64."""
    return base64.b64encode(np.array(list(numbers), "<f8").tobytes()).decode()
