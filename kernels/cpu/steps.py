"""A loop's body as a printed function of one element, which a loop calls with each, or with a vector of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fastopt.kernels.compiler.lowering import Loop
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import wrapped

SIZE, INFINITE = 0x7FFF, 0x7F80
"""Bits of a bfloat16 but for its sign, and what they are of ∞: of NaN they are more."""

MOST_ARGUMENTS = 28
"""Arguments of a function that Numba inlines: Python passes more than 30 in a tuple, so here they come in several."""


INLINED = '@njit(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")'
"""How a function that only a kernel calls is compiled: what would make it callable from elsewhere takes time."""


def grouped(names: list) -> list[list]:
    """Divide arguments, or their types, into as many groups as such a function needs."""
    return [names[k : k + MOST_ARGUMENTS] for k in range(0, len(names), MOST_ARGUMENTS)]


class Step(NamedTuple):
    """What is printed of a loop's body: the function, and what goes in and comes out, in this order."""

    function: list[str]  # lines
    call: Callable[[Sequence[str], Sequence[str], Callable[[str], str]], str]  # of elements, reloads, other names
    loads: list[str]  # buffers of which it takes an element
    reloads: list[str]  # spilled values that it takes
    uniform: list[str]  # what is the same for all elements
    sequences: list[str]  # words of an element's own: of sequences, or its index
    stores: list[str]  # buffers of which it returns an element
    spills: list[str]  # values that it returns for later loops
    maxima: list[str]  # words that it returns, of which the largest is wanted
    signs: list[bool]  # of each buffer in loads, whether its element is a signed number

    @property
    def results(self) -> list[str]:
        """Names of what it returns."""
        return [*self.stores, *self.spills, *self.maxima]


def print_step(loop: Loop, name: str, names: dict[str, str], program: Program, *, signed: bool = False) -> Step:
    """Print the function `name`; it is compiled once for elements, once for vectors, and LLVM inlines it.

    With `signed` it takes codes that have a sign as signed numbers. Their bytes alone would do, but LLVM takes what it
    makes of them apart before it sees how they were loaded.
    """
    loads, stores = [names[b] for b in loop.loads], [names[b] for b, _ in loop.stores]
    reloads, spills, maxima = ([v.name for v in values] for values in (loop.reloads, loop.spills, loop.maxima))
    results = [*(text for _, text in loop.stores), *spills, *(v.text for v in loop.maxima)]
    lines = [f"{v.name} = {v.text}" for v in loop.lines] + [f"return {', '.join(results)}"]
    signs = [signed and _is_signed(b, lines) for b in loads]
    for b in (b for b, sign in zip(loads, signs, strict=True) if sign):
        lines = [line.replace(f"signed({b}_i)", f"{b}_i") for line in lines]
    mentioned = set(re.findall(r"\w+", " ".join(lines)))
    uniform = [*(names[b.name] + "_i" for b in program.buffers if b.tiled), *(names[s] for s in program.scalars)]
    uniform += [names[b.name] for b in program.buffers if b.of_row]
    own = {f"{b}_i" for b in loads} | {v.name for v in loop.lines} | set(reloads)
    moving = [s.name for s in loop.sequences]
    known = [*uniform, *sorted(name for name in mentioned if re.fullmatch(r"(x|max)\d+", name) and name not in moving)]
    uniform, moving = ([name for name in some if name in mentioned - own] for some in (known, ["index", *moving]))
    parameters = [*(f"{b}_i" for b in loads), *reloads, *uniform, *moving]
    packed = len(parameters) > MOST_ARGUMENTS
    if packed:
        groups = grouped(parameters)
        lines = [f"({', '.join(group)},) = group{k}" for k, group in enumerate(groups)] + lines
        parameters = [f"group{k}" for k in range(len(groups))]

    def call(elements: Sequence[str], spilled: Sequence[str], other: Callable[[str], str]) -> str:
        passed = [*elements, *spilled, *map(other, [*uniform, *moving])]
        passed = [f"({', '.join(group)},)" for group in grouped(passed)] if packed else passed
        return f"{name}({', '.join(passed)})"

    function = [
        INLINED,
        *wrapped(f"def {name}(", parameters, "):"),
        *(f"    {line}" for line in lines),
        "",
        "",
    ]
    return Step(function, call, loads, reloads, uniform, moving, stores, spills, maxima, signs)


def _is_signed(buffer: str, lines: list[str]) -> bool:
    """Whether an element is nowhere taken but as a signed number."""
    text = "\n".join(lines)
    return len(re.findall(rf"\b{buffer}_i\b", text)) == text.count(f"signed({buffer}_i)") > 0
