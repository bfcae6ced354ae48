"""Printed loops over words that hold two elements each, for programs in which every buffer has 8 or 16 bits.

To widen 16 bits to 32 and back costs more than what lies between; to take a word's halves costs next to nothing.
"""

from __future__ import annotations

from fastopt.kernels.compiler.lowering import Loop
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import ATOM, SUM
from fastopt.kernels.cpu.steps import INFINITE, SIZE, print_step


def print_pairs(
    loop: Loop, step: str, names: dict[str, str], program: Program, count: int
) -> tuple[list[str], list[str]]:
    """Print a function of one element, `step`, and the loop that calls it for both halves of each word.

    `count` is the number of buffers and spills of the whole kernel.
    """
    bits = {names[b.name]: 8 * b.dtype.itemsize for b in program.buffers}
    made = print_step(loop, step, names, program)
    if not made.results:
        return [], ["pass"]  # frozen parameters
    sequences = {s.name: s for s in loop.sequences}

    def call(half: str, at: str, elements: list[str], index: str) -> str:
        def other(name: str) -> str:
            return index if name == "index" else sequences[name].value(name + half) if name in sequences else name

        spilled = [f"{v}_spill{half}[{at}]" for v in made.reloads]
        return f"{', '.join(f'{x}{half}' for x in made.results)} = {made.call(elements, spilled, other)}"

    def largest(*halves: str) -> list[str]:
        found = [f"{name} = umax({name}, {name}{half})" for name in made.maxima for half in halves]
        sizes = [f"{names[b]}{half} & word({SIZE})" for b in loop.watched for half in halves]
        return [*found, *(f"{loop.nan} = umax({loop.nan}, {size})" for size in sizes)]

    def spill(half: str, at: str) -> list[str]:
        return [f"{v}_spill{half}[{at}] = {v}{half}" for v in made.spills]

    order = {names[b.name]: k for k, b in enumerate(program.buffers)}
    first = [f"low({b}[i], {bits[b]})" for b in made.loads]
    second = [f"high({b}[i], {bits[b]})" for b in made.loads]
    last = [f"{b}_last[0]" for b in made.loads]
    rest = [
        "if count % 2:",
        *(
            f"    {b}_last = buffer({b}_at, strip + count - 1, uint{bits[b]}, {order[b]}, {count})"
            for b in dict.fromkeys([*made.loads, *made.stores])
        ),
        f"    {call('_0', 'count // 2', last, 'start + word(count - 1)')}",
        *(f"    {b}_last[0] = {b}_0" for b in made.stores),
        *(f"    {line}" for line in spill("_0", "count // 2")),
        *(f"    {line}" for line in largest("_0")),
    ]
    lines = [
        *(f"{v.name} = {v.text}" for v in loop.uniform),
        *(f"{names[b]}[0] = {text}" for b, text in loop.tile_stores),
        *(f"{name} = word(0)" for name in (*made.maxima, *[loop.nan] * bool(loop.watched))),
        *(f"{s.name}_0 = {s.first.within(SUM)} + start * {s.step.within(ATOM)}" for s in loop.sequences),
        *(f"{s.name}_1 = {s.name}_0 + {s.step.within(SUM)}" for s in loop.sequences),
        *(f"{s.name}_2 = {s.step.within(SUM)} + {s.step.within(SUM)}" for s in loop.sequences),
        "for i in range(count // 2):",
        f"    {call('_0', 'i', first, 'start + word(2 * i)')}",
        f"    {call('_1', 'i', second, 'start + word(2 * i + 1)')}",
        *(f"    {b}[i] = join({b}_0, {b}_1, {bits[b]})" for b in made.stores),
        *(f"    {line}" for half in ("_0", "_1") for line in spill(half, "i")),
        *(f"    {line}" for line in largest("_0", "_1")),
        *(f"    {name}_{half} = {name}_{half} + {name}_2" for name in sequences for half in (0, 1)),
        *rest,
        *([f"nan = {loop.nan} > word({INFINITE})"] if loop.watched else []),
    ]
    return made.function, lines
