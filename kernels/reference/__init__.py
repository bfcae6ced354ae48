"""The reference backend: the rule called on NumPy arrays. Slow, obvious, and the truth that every kernel equals."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np

from fastopt.errors import RuleError
from fastopt.kernels.compiler.noise import normal, rounding_order, words_for_noise, words_for_rounding
from fastopt.kernels.compiler.powers import Values
from fastopt.kernels.compiler.program import Buffer, Program
from fastopt.kernels.formats import NEAREST, pack, unpack
from fastopt.kernels.launch import Rows
from fastopt.kernels.rules.matrixwise import SHAPE
from fastopt.kernels.rules.rule import signature
from fastopt.kernels.rules.skip import LISTENER as CONDITIONS
from fastopt.kernels.rules.total import LISTENER

ZERO = np.zeros(1, np.uint8)
"""What is written to gradients that a step sets to zero, also one that is skipped."""


class ReferenceLaunch:
    """A step of the rule's specialization on arrays, row by row; new values are all computed before one is written."""

    def __init__(self, program: Program, rows: Rows):
        self.program, self._rows = program, rows
        self.flags = np.array([1.0, 0.0])  # whether the last step was taken, and whether it was skipped
        self._addresses = [list(row) for row in rows.addresses]

    def set_addresses(self, buffer: int, addresses: np.ndarray) -> None:
        """Move one buffer of every row."""
        for row, address in zip(self._addresses, addresses.tolist(), strict=True):
            row[buffer] = address

    def calls(self, keys: tuple[int, ...], scalars: tuple[float, ...]) -> list[tuple]:
        """Compute the step, and prepare the assignments of what it computed."""
        return steps([(self, keys, scalars)])

    def found(self, keys: tuple[int, ...], scalars: tuple[float, ...]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Compute the new elements of each row."""
        rows = zip(self._rows.sizes, self._rows.offsets, self._addresses, strict=True)
        for row, (n, offset, addresses) in enumerate(rows):
            arrays = [_array(at, b, int(n)) for at, b in zip(addresses, self.program.buffers, strict=True)]
            before = SHAPE.set(self._rows.shapes[row] if self._rows.shapes is not None else None)
            try:
                found = _step(self.program, arrays, int(n), keys, int(offset), scalars)
            finally:
                SHAPE.reset(before)
            yield found


def steps(launches: Sequence[tuple[ReferenceLaunch, tuple, tuple]]) -> list[tuple]:
    """Prepare the step of several launches at once, each with its keys and scalars.

    A total over all parameters is known when all rows have come to it, so everything is computed once more for each.
    When all are known the conditions of the step count.
    """
    known: list[np.float64] = []
    while True:
        parts: list[np.float64] = []
        found, conditions = [], []
        for launch, keys, scalars in launches:
            for row in _listened(launch.program, launch.found(keys, scalars), known, parts, conditions):
                found += row
        if len(known) == max((len(launch.program.over_all) for launch, _, _ in launches), default=0):
            skipped = not all(conditions)
            now = np.array([not skipped, skipped], np.float64)  # NumPy runs signal handlers while it converts a tuple
            flags = [(launch.flags.__setitem__, ..., now) for launch, _, _ in launches]
            written = [(array, x) for array, x in found if x is ZERO or not skipped]
            return [*flags, *((array.__setitem__, ..., x) for array, x in written)]
        with np.errstate(all="ignore"):
            known.append(sum(parts, np.float64(0)))


def _listened(
    program: Program, rows: Iterator, known: list[np.float64], parts: list[np.float64], conditions: list[bool]
) -> Iterator:
    """Compute rows with the totals over all that are known; the next one's parts, and conditions, go into lists."""
    while True:
        calls, summed = iter(program.total_calls), set()

        def heard(own: np.float64, over: str, calls: Iterator = calls, summed: set = summed) -> np.float64:
            number = next(calls, None)
            place = None if number is None else program.place_over_all(number)
            if place is None:
                return own
            if place < len(known):
                return known[place]
            if place == len(known) and place not in summed:  # a rule may take the same one again
                summed.add(place)
                parts.append(own)
            return own

        def next_row(heard: Callable = heard) -> Any:
            LISTENER.set(heard)
            CONDITIONS.set(conditions.append)
            return next(rows, None)

        row = copy_context().run(next_row)  # so that nobody listens afterwards, wherever an interrupt comes
        if row is None:
            return
        yield row


def bind(program: Program, rows: Rows) -> ReferenceLaunch:
    """Prepare steps over rows in the CPU's memory."""
    return ReferenceLaunch(program, rows)


def _array(address: int, buffer: Buffer, n: int) -> np.ndarray:
    """View memory as a flat array."""
    size = buffer.size(n)
    if not size:
        return np.empty(0, buffer.dtype)
    memory = (ctypes.c_char * (size * buffer.dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, buffer.dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _step(
    program: Program, arrays: Sequence[np.ndarray], n: int, keys: tuple, offset: int, scalars: tuple
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each array that is written, with its new elements."""
    rule = program.specialization
    names, _, _, with_noise = signature(rule)
    memory = {b.name: a for b, a in zip(program.buffers, arrays, strict=True)}
    values = {
        b: unpack(form, [memory[name] for name, plane in form.plane_names(b).items() if plane.read])
        for b, form in program.formats.items()
    }
    numbers: dict[str, Any] = dict(zip(program.scalars, map(program.dtype.type, map(float, scalars)), strict=True))
    with np.errstate(all="ignore"):
        if with_noise:
            numbers["noise"] = normal(words_for_noise(keys[0], keys[1], offset, n)).astype(program.dtype)
        given = [values[name].view(Values) if name in values else None for name in names]
        returned = rule.update(*given, **numbers)
        results = returned if isinstance(returned, tuple) else (returned,)
        new = dict(zip([name for name in names if name != "g"], results, strict=True))
        rounding, writes = words_for_rounding(keys[0], keys[1], offset, n) if keys else None, []
        for b in rounding_order(program.values):
            form = program.formats[b]
            _require_like_old(program, b, new[b], n)
            value = np.broadcast_to(new[b], n).copy()
            bits = NEAREST
            if form.random:
                assert rounding is not None  # a program that rounds at random has noise, and so keys
                bits = rounding.of_next_buffer(form.random)
            packed = pack(form, value, bits)
            writes += [(memory[name], x) for name, x in zip(form.plane_names(b), packed, strict=True)]
    if getattr(rule, "zero_gradients", False):
        writes += [(memory[name], ZERO) for name in program.formats["g"].plane_names("g")]
    return writes


def _require_like_old(program: Program, name: str, value: Any, n: int) -> None:
    found = np.asarray(value)
    if found.dtype != program.dtype or found.shape not in ((), (n,)):
        raise RuleError(
            f"the new {name} is not an array like the old one.",
            got=f"{found.dtype}{list(found.shape)}",
            expected=f"{program.dtype}[{n}]",
            where=f"{program.rule}.update",
        )
