"""Batches: full-batch, mini-batch and stochastic descent as one iteration, and the choice of a batch size.

The three differ only in how many samples the gradient of a step is computed from: all n, some, or one.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from numbers import Rational
from typing import Any

import numpy as np

from fastopt.checks import POSITIVE, choice, integer
from fastopt.errors import LayoutError, SettingError, raised_by


class Minibatches:
    """One epoch of batches, as `minibatches` returns it: len() counts them, and iterating again yields the same."""

    def __init__(self, arrays: tuple[np.ndarray, ...], size: int, key: tuple[int, int] | None, drop_last: bool):
        self._arrays, self._size, self._key = arrays, size, key
        self._stop = len(arrays[0]) // size * size if drop_last else len(arrays[0])

    def __len__(self) -> int:
        return -(-self._stop // self._size)

    def __iter__(self) -> Iterator[Any]:
        order = None
        if self._key is not None:
            seed, epoch = self._key
            # The epoch as a spawn key: SeedSequence([seed, epoch]) takes (0, 1) and (2³², 0) for the same thing.
            bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
            order = np.random.Generator(bits).permutation(len(self._arrays[0]))
        for first in range(0, self._stop, self._size):
            rows = slice(first, first + self._size)
            batch = tuple(array[rows if order is None else order[rows]] for array in self._arrays)
            yield batch[0] if len(batch) == 1 else batch


@raised_by("minibatches")
def minibatches(
    *arrays: np.ndarray, size: int | None = None, seed: int | None = None, epoch: int = 0, drop_last: bool = False
) -> Minibatches:
    """Iterate over one epoch of NumPy arrays that share their first dimension, the n samples.

    Each batch holds the same `size` samples of every array: the batch itself for one array, a tuple for several.
    size=None, or any size ≥ n, is batch gradient descent: one batch of all n samples. size=1 is stochastic gradient
    descent. In between, the last batch holds the n mod size samples that are left, unless drop_last leaves it out.

    seed=None keeps the order, and the batches are views. With a seed, an integer ≥ 0, the batches are copies in an
    order that depends on (seed, epoch, n) alone, the same for all arrays: any epoch can be replayed without those
    before it, wherever NumPy's PCG64 Generator shuffles alike. epoch is an integer ≥ 0; without a seed it changes
    nothing.

    Where others differ: torch's DataLoader yields no batch at all for size > n with drop_last, here the full batch.

    >>> import numpy as np
    >>> from fastopt.batches import minibatches
    >>> x, y = np.arange(5), np.arange(5) ** 2
    >>> for batch in minibatches(x, y, size=2):
    ...     print(*batch)
    [0 1] [0 1]
    [2 3] [4 9]
    [4] [16]
    >>> batches = minibatches(x, size=2, seed=7, epoch=3)
    >>> len(batches), sorted(np.concatenate(list(batches)).tolist())
    (3, [0, 1, 2, 3, 4])

    Raises:
        LayoutError: there are no arrays or no samples, an argument is not an array with at least one dimension, or the
            arrays' lengths differ.
        SettingError: size is not an integer ≥ 1, seed or epoch not an integer ≥ 0, or drop_last not a bool.

    """
    for k, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or not array.ndim:
            got = f"{type(array).__name__} of shape {getattr(array, 'shape', 'unknown')}"
            expected, do = "a NumPy array with at least one dimension", "pass np.asarray(…)"
            raise LayoutError(f"array {k} has no samples.", got=got, expected=expected, do=do)
    lengths = [len(array) for array in arrays]
    if not lengths or min(lengths) != max(lengths) or not lengths[0]:
        what = "the arrays hold the same number of samples, and at least one."
        raise LayoutError(what, got=f"arrays of lengths {lengths}", expected="equal lengths ≥ 1")
    drop_last = choice("drop_last", drop_last)
    size = lengths[0] if size is None else min(integer("size", size, 1), lengths[0])
    epoch = integer("epoch", epoch, 0)
    key = None if seed is None else (integer("seed", seed, 0), epoch)
    return Minibatches(arrays, size, key, drop_last)


@raised_by("suggest_batch_size")
def suggest_batch_size(samples: int, bytes_per_sample: float, memory: float) -> int:
    """Choose a batch size by rule of thumb: all samples if they are few, otherwise a power of two from 64 to 512.

    Below 2,000 samples it is the full batch, if that fits in memory; otherwise the largest of 512, 256, 128 and 64
    whose batch fits. It is never more than `samples`.

    samples is an integer ≥ 1; bytes_per_sample, what a sample costs while the step is computed (with its activations),
    and memory, what there is for a batch, are numbers > 0 in bytes.

    >>> from fastopt.batches import suggest_batch_size
    >>> suggest_batch_size(1_500, bytes_per_sample=3_000, memory=8e9)
    1500
    >>> suggest_batch_size(60_000, bytes_per_sample=3_000_000, memory=1e9)
    256

    Raises:
        SettingError: an argument is out of its range, or not even 64 samples fit in memory.

    Source: Ng, "Deep Learning Specialization", course 2, week 2: "Understanding mini-batch gradient descent".

    """
    samples = integer("samples", samples, 1)
    cost, limit = _amount("bytes_per_sample", bytes_per_sample), _amount("memory", memory)
    # Where a power of two above `samples` would fit, all samples do, and they come first.
    for size in ([samples] if samples < 2000 else []) + [512, 256, 128, 64]:
        if size * cost <= limit:
            return size
    least = min(samples, 64)
    raise SettingError(
        f"not even {least} samples fit in memory.",
        got=f"{least} · {bytes_per_sample} bytes, {memory} bytes of memory",
        do="sum the gradients of smaller batches, one after another, before each step",
    )


def _amount(name: str, value: Any) -> Fraction:
    """Return a finite number > 0 exactly: NumPy's integers have few bits, and large ones are no floats."""
    amount = Fraction(0)
    if isinstance(value, Rational) and not isinstance(value, bool):
        amount = Fraction(int(value.numerator), int(value.denominator))
    elif isinstance(value, float | np.floating) and np.isfinite(value):
        amount = Fraction(float(value))
    if amount > 0:
        return amount
    raise SettingError(f"{name} is out of its range.", got=f"{name}={value!r}", expected=POSITIVE)
