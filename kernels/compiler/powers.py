"""Powers that rules may write: exact products and roots, the same on arrays and while they are traced.

NumPy's own x**3 calls the power function of the machine's mathematical library, whose last bit differs from one library
to another. Its x**2 and x**0.5 are the product and the root.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EXPONENTS = frozenset([0.5, *range(1, 9)])
"""The exponents whose powers are written out, and with the other sign too."""


def is_exact_power(exponent: Any) -> bool:
    """Whether x**exponent is made of products, roots and one division."""
    return type(exponent) in (int, float) and abs(exponent) in EXPONENTS


def power(x: Any, exponent: float) -> Any:
    """Compute x**exponent, for exponents that `is_exact_power` knows: products from left to right.

    >>> import numpy as np
    >>> power(np.array([2.0, 9.0]), 3), power(np.array([4.0]), -0.5)
    (array([  8., 729.]), array([0.5]))
    """
    size = abs(exponent)
    if size == 0.5:
        result = np.sqrt(x)
    else:
        result = x * 1 if size == 1 else x
        for _ in range(int(size) - 1):
            result = result * x
    return 1 / result if exponent < 0 else result


class Values(np.ndarray):
    """An array whose powers are exact products and roots: on it a rule's `update` has the bits of its kernels."""

    def __pow__(self, exponent: Any, modulo: Any = None) -> Any:
        if self.dtype.kind == "f" and is_exact_power(exponent):
            return power(self, exponent)
        return super().__pow__(exponent)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Return what np.where makes of such arrays as one of them too."""
        result = super().__array_function__(function, types, args, kwargs)
        return result.view(Values) if type(result) is np.ndarray else result

    def __ipow__(self, exponent: Any) -> Any:
        self[...] = self**exponent
        return self
