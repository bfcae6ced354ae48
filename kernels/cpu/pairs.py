"""Printed loops over words that hold two elements each, for programs in which every buffer has 8 or 16 bits.

To widen 16 bits to 32 and back costs more than what lies between; to take a word's halves costs next to nothing.
"""

from __future__ import annotations

import re

from fastopt.kernels.compiler.lowering import Loop
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import wrapped
from fastopt.kernels.formats import TILE

MOST_ARGUMENTS = 28
"""Arguments of a function that Numba inlines: Python passes more than 30 in a tuple, so here they come in several."""


def _groups(names: list[str]) -> list[list[str]]:
    return [names[k : k + MOST_ARGUMENTS] for k in range(0, len(names), MOST_ARGUMENTS)]


def print_pairs(
    loop: Loop,
    step: str,
    names: dict[str, str],
    program: Program,
    count: int,
    *,
    whole: bool = False,
    rare: bool = False,
) -> tuple[list[str], list[str]]:
    """Print a function of one element, `step`, and the loop that calls it for both halves of each word.

    `count` is the number of buffers and spills of the whole kernel; `whole` says that the loop is over a whole tile,
    `rare` that most tiles do without it.
    """
    bits = {names[b.name]: 8 * b.dtype.itemsize for b in program.buffers}
    loads, stores = [names[b] for b in loop.loads], [names[b] for b, _ in loop.stores]
    reloads, spills, maxima = ([v.name for v in values] for values in (loop.reloads, loop.spills, loop.maxima))
    results = [*(text for _, text in loop.stores), *spills, *(v.text for v in loop.maxima)]
    if not results:
        return [], ["pass"]  # frozen parameters
    lines = [f"{v.name} = {v.text}" for v in loop.lines] + [f"return {', '.join(results)}"]
    mentioned = set(re.findall(r"\w+", " ".join(lines)))
    uniform = [*(names[b.name] + "_i" for b in program.buffers if b.tiled), *(names[s] for s in program.scalars)]
    own = {f"{b}_i" for b in loads} | {v.name for v in loop.lines} | set(reloads)
    sequences = [name for name, _, _ in loop.sequences]
    known = ["index", *uniform, *sorted(name for name in mentioned if re.fullmatch(r"(x|max)\d+", name))]
    used = [name for name in known if name in mentioned - own]
    parameters = [*(f"{b}_i" for b in loads), *reloads, *used]
    packed = len(parameters) > MOST_ARGUMENTS
    if packed:
        groups = _groups(parameters)
        lines = [f"({', '.join(group)},) = group{k}" for k, group in enumerate(groups)] + lines
        parameters = [f"group{k}" for k in range(len(groups))]

    def call(half: str, at: str, elements: list[str], index: str) -> str:
        passed = [*elements, *(f"{v}_spill{half}[{at}]" for v in reloads)]
        passed += [index if name == "index" else f"{name}{half}" if name in sequences else name for name in used]
        passed = [f"({', '.join(group)},)" for group in _groups(passed)] if packed else passed
        return f"{', '.join(f'{x}{half}' for x in (*stores, *spills, *maxima))} = {step}({', '.join(passed)})"

    def spill(half: str, at: str) -> list[str]:
        return [f"{v}_spill{half}[{at}] = {v}{half}" for v in spills]

    # What is not the usual way through a kernel is compiled once, instead of at each of its three calls.
    how = "forceinline=True" if rare else 'inline="always"'
    function = [
        f'@njit({how}, error_model="numpy")',
        *wrapped(f"def {step}(", parameters, "):"),
        *(f"    {line}" for line in lines),
        "",
        "",
    ]
    order = {names[b.name]: k for k, b in enumerate(program.buffers)}
    first = [f"low({b}[i], {bits[b]})" for b in loads]
    second = [f"high({b}[i], {bits[b]})" for b in loads]
    last = [f"{b}_last[0]" for b in loads]
    rest = [
        "if count % 2:",
        *(
            f"    {b}_last = buffer({b}_at, strip + count - 1, uint{bits[b]}, {order[b]}, {count})"
            for b in dict.fromkeys([*loads, *stores])
        ),
        f"    {call('_0', 'count // 2', last, 'start + word(count - 1)')}",
        *(f"    {b}_last[0] = {b}_0" for b in stores),
        *(f"    {line}" for line in spill("_0", "count // 2")),
        *(f"    {name} = umax({name}, {name}_0)" for name in maxima),
    ]
    loop_lines = [
        *(f"{v.name} = {v.text}" for v in loop.uniform),
        *(f"{names[b]}[0] = {text}" for b, text in loop.tile_stores),
        *(f"{name} = word(0)" for name in maxima),
        *(f"{name}_0 = {first} + start * {step}" for name, first, step in loop.sequences),
        *(f"{name}_1 = {name}_0 + {step}" for name, _, step in loop.sequences),
        *(f"{name}_2 = {step} + {step}" for name, _, step in loop.sequences),
        f"for i in range({f'{TILE // 2}' if whole else 'count // 2'}):",
        f"    {call('_0', 'i', first, 'start + word(2 * i)')}",
        f"    {call('_1', 'i', second, 'start + word(2 * i + 1)')}",
        *(f"    {b}[i] = join({b}_0, {b}_1, {bits[b]})" for b in stores),
        *(f"    {line}" for half in ("_0", "_1") for line in spill(half, "i")),
        *(f"    {name} = umax({name}, umax({name}_0, {name}_1))" for name in maxima),
        *(f"    {name}_{half} = {name}_{half} + {name}_2" for name in sequences for half in (0, 1)),
        *([] if whole else rest),
    ]
    return function, loop_lines
