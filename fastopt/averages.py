"""Exponentially weighted averages, with the bias of their start corrected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from fastopt.checks import DECAY_RATE, choice, integer, number
from fastopt.errors import LayoutError, SettingError, raised_by, suggest


class EWA:
    """Exponentially weighted average of a series θ₁, θ₂, … of numbers, or of arrays element by element.

        v_t = β v_{t−1} + (1 − β) θ_t,    v_0 = 0
        value = v_t / (1 − βᵗ)            bias_correction=True; otherwise v_t

    θ_i has the weight (1 − β) βᵗ⁻ⁱ, so about the last 1/(1 − β) entries count, the `window`. The weights sum to 1 − βᵗ:
    that is why v_t is too small at first, and why the corrected value is a weighted mean from t = 1 on.

    Settings: beta in [0, 1); bias_correction. They are attributes, and so is t, the number of updates so far. All
    values are in the units of θ. Single numbers, Python's and NumPy's, are averaged in float64 and come back as float.
    float32 and float64 arrays of any shape keep their dtype, integer arrays become float64, masked arrays are refused;
    1 − β and 1 − βᵗ are
    computed in float64 whatever the dtype. A NaN stays in the average until `reset()`, and so does an infinity, which
    one of the other sign turns into a NaN. Before the first update raw is 0.0 and value is 0/0, a NaN (without
    correction 0.0).

    Where others differ: this is optax.ema, and with correction pandas' `ewm(alpha=1 − β).mean()`; pandas with
    adjust=False starts from v_1 = θ_1 instead.

    >>> from fastopt.averages import EWA
    >>> average = EWA(beta=0.5)
    >>> [average.update(x) for x in (4.0, 1.0, 1.0)]
    [4.0, 2.0, 1.4285714285714286]
    >>> average.raw, average.t, average.window
    (1.25, 3, 2.0)

    Raises SettingError where beta is not a number in [0, 1) or bias_correction is not a bool.

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980, section 3.
    """

    @raised_by("EWA")
    def __init__(self, beta: float = 0.9, bias_correction: bool = True):
        self.beta = number("beta", beta, DECAY_RATE)
        self.bias_correction = choice("bias_correction", bias_correction)
        self.reset()

    def __repr__(self) -> str:
        return f"EWA(beta={self.beta}, bias_correction={self.bias_correction}) at t={self.t}"

    def reset(self) -> None:
        """Start again at t = 0, with a series of any layout."""
        self.t = 0
        self._v: Any = 0.0  # a float or an array

    @property
    def window(self) -> float:
        """About how many entries count: 1/(1 − β), within which the weights fall to 1/e."""
        return 1 / (1 - self.beta)

    @property
    def raw(self) -> Any:
        """The uncorrected v_t, a float or a new array."""
        return self._v.copy() if isinstance(self._v, np.ndarray) else self._v

    @property
    def value(self) -> Any:
        """The current average, a float or a new array; before the first update a NaN, without correction 0.0."""
        if not self.bias_correction:
            return self.raw
        if isinstance(self._v, np.ndarray):
            return self._corrected(np.empty_like(self._v))
        return self._v / (1 - self.beta**self.t) if self.t else math.nan

    def _corrected(self, out: np.ndarray) -> np.ndarray:
        return np.divide(self._v, 1 - self.beta**self.t if self.bias_correction else 1.0, out=out)

    @raised_by("EWA.update")
    def update(self, x: Any) -> Any:
        """Add the next entry of the series and return the new average, a float or a new array; x is only read.

        Raises:
            LayoutError: x is neither a real number nor a float32, float64 or integer array, or it does not have the
                shape and dtype of the entries before it; the average is as it was.

        """
        layout, dtype = _layout(x)
        if self.t and layout != (before := _layout(self._v)[0]):
            what, do = "an entry does not match those before it.", "use an EWA for each series, or reset() this one"
            raise LayoutError(what, got=layout, expected=before, do=do)
        if dtype is None:
            self._v = self.beta * self._v + (1 - self.beta) * float(x)
            self.t += 1
            return self.value
        if not self.t:
            self._v = np.zeros(x.shape, dtype)
        self.t += 1
        with np.errstate(over="ignore", invalid="ignore"):  # ∞ and NaN without a warning, as with Python's floats
            out = np.multiply(x, 1 - self.beta, out=np.empty(x.shape, dtype))
            self._v *= self.beta
            self._v += out
            return self._corrected(out)

    @staticmethod
    @raised_by("EWA.over")
    def over(values: Any, beta: float = 0.9, bias_correction: bool = True) -> np.ndarray:
        """Average a whole series along its first axis, to smooth a loss curve; the result has the shape of `values`.

        `values` is an array or a sequence of numbers. Entry i of the result is what `update` returns for `values[i]`,
        in the dtype of the series (float64 for integers); a one-dimensional series is averaged in float64.

        >>> from fastopt.averages import EWA
        >>> EWA.over([4, 1, 1], beta=0.5)
        array([4.        , 2.        , 1.42857143])

        Raises:
            SettingError: beta is not a number in [0, 1), or bias_correction is not a bool.
            LayoutError: `values` is not an array of float32, float64 or integers with at least one axis.

        """
        average = EWA(beta, bias_correction)
        for x in (values, *values) if isinstance(values, list | tuple) else (values,):
            if isinstance(x, np.ma.MaskedArray):
                _layout(x)
        try:
            series = np.asarray(values)
        except ValueError:  # lists of different lengths
            series = np.empty((), object)
        layout, dtype = _layout(series)
        if not series.ndim:
            raise LayoutError("a series has at least one axis.", got=layout, expected="float64[n]")
        out = np.empty(series.shape, dtype)
        for i, x in enumerate(series.tolist() if series.ndim == 1 else series):
            out[i] = average.update(x)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on from here: beta, t and a copy of raw.

        It can be pickled, or stored with `np.savez(path, **average.state_dict())` and read again with `np.load(path)`.
        There a single number and a float64 array without dimensions are one thing: both come back as a number.
        """
        return {"beta": self.beta, "t": self.t, "raw": self.raw}

    @raised_by("EWA.load_state_dict")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict()` was taken; raw is copied.

        Raises:
            SettingError: an entry is missing, unknown or out of range, or beta is another one.
            LayoutError: raw is not what an average can be; in either case the average is as it was.

        """
        names = ["beta", "t", "raw"]
        if not isinstance(state, Mapping) or set(state) != set(names):
            got = list(state) if isinstance(state, Mapping) else type(state).__name__
            strange = [str(key) for key in got if key not in names] if isinstance(got, list) else []
            do = suggest(strange[0], names) if strange else None
            raise SettingError("the state has other entries.", got=got, expected=names, do=do)
        beta, t, raw = (state[name] for name in names)
        if isinstance(beta, np.ndarray) and isinstance(raw, np.ndarray):  # from np.load, which returns nothing else
            beta, t, raw = _bare(beta), _bare(t), raw if raw.dtype == np.float32 else _bare(raw)
        if not isinstance(beta, Real) or beta != self.beta:
            do = f"load it into EWA(beta={beta!r})"
            raise SettingError("the state has another beta.", got=repr(beta), expected=self.beta, do=do)
        layout, dtype = _layout(raw)
        t = integer("t", t, 0)
        if t == 0 and (dtype is not None or raw != 0):
            raise SettingError("t is out of its range.", got=f"t={t!r}, raw={layout}", expected="raw=0.0 at t=0")
        self.t, self._v = t, float(raw) if dtype is None else np.array(raw, dtype)


def _bare(x: Any) -> Any:
    """Return the number in an array without dimensions; leave anything else as it is."""
    return x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x


def _layout(x: Any) -> tuple[str, np.dtype | None]:
    """Describe an entry of a series: in words, and by the dtype of its average, None for a single number."""
    layout, do = type(x).__name__, None
    if isinstance(x, Real) and not isinstance(x, bool):
        try:
            float(x)
            return "a number", None
        except OverflowError:
            layout = f"{layout} beyond the largest float"
    elif isinstance(x, np.ma.MaskedArray):
        do = "pass its .data, or .filled(…)"
    elif isinstance(x, np.ndarray):
        dtype = np.dtype("f8") if x.dtype.kind in "iu" else x.dtype
        layout = f"{dtype}{list(x.shape)}"
        if dtype == np.float32 or dtype == np.float64:
            return layout, dtype
    expected = "a real number, or a NumPy array of float32, float64 or integers"
    raise LayoutError("this is nothing to average.", got=layout, expected=expected, do=do)
