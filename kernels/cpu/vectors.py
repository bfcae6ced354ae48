"""Printed loops over the vectors of a whole tile: `LANES` elements at once, or `LANES` words of two elements each.

A loop over single elements is as fast as what LLVM recognizes in it, and cannot prefetch. Here each operation is one of
vectors; narrow elements are written several vectors at once, where packing them costs least.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastopt.kernels.compiler.lowering import Loop, Sequence
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import SUM, Text
from fastopt.kernels.cpu.steps import INFINITE, print_step
from fastopt.kernels.cpu.tuning import halves_at_once, processor_prefetches
from fastopt.kernels.formats import TILE


def print_vectors(
    loop: Loop, step: str, names: dict[str, str], program: Program, *, paired: bool, plain: bool
) -> tuple[list[str], list[str]]:
    """Print a function, `step`, and the loop that calls it for vectors of elements, or of pairs of them.

    The loop is over a whole tile or, in a program that knows none, over any number of them. With `plain` there is no
    loop over single elements that calls the function too.
    """
    made = print_step(loop, step, names, program, signed=plain)
    if not made.results:
        return [], ["pass"]
    unread = {names[b.name] for b in program.buffers if not b.read}
    size = {names[b.name]: b.dtype.itemsize for b in program.buffers if b.elementwise}
    halves, width = (["_0", "_1"], 2) if paired else ([""], 1)
    narrow = [width * size[b] for b in made.stores if width * size[b] < 4]  # bytes of what a lane holds
    at_once = max([2, *(4 // bytes_ for bytes_ in narrow), *[halves_at_once()] * (not paired and 2 in narrow)])
    extent = f"{TILE // width}" if program.noise or program.tiled else f"count // {width}" if paired else "count"
    # Without prefetches a fetch would be one of what is loaded next: 2 to 3 % of a loop that only reads.
    far = "far" if program.compressed or processor_prefetches() else "None"

    made_of = {names[b]: node for b, node in (program.plain or program).results.items()}
    least = [made_of[b].value if made_of[b].op == "code" else -1 for b in made.stores]

    def of_halves(values: list[str]) -> str:
        return _tuple(f"{v}_spill{half}" for half in halves for v in values)

    largest = [f"{v}_each" for v in (*made.maxima, *[loop.nan] * bool(loop.watched))]
    moving = [[f"{v}_each{half}" for half in halves] for v in made.sequences]
    growing = {s.name: s for s in loop.sequences} | {
        "index": Sequence("index", Text("word(0)"), Text("word(1)"), False)
    }
    arguments = {
        "loads": _tuple(made.loads),
        "signs": _tuple(str(int(sign)) for sign in made.signs),
        "reloads": of_halves(made.reloads),
        "uniform": _tuple(made.uniform),
        "sequences": _tuple(
            _tuple([*vectors, f"{v}_step", "16" if growing[v].halved else "32"])
            for v, vectors in zip(made.sequences, moving, strict=True)
        ),
        "stores": _tuple(made.stores),
        "least": _tuple(map(str, least)),
        "spills": of_halves(made.spills),
        "maxima": _tuple(largest),
        "quiet": _tuple(str(made.stores.index(names[b])) for b in loop.watched),
        "unread": _tuple(str(n) for n, b in enumerate(made.stores) if b in unread),
    }
    kept = [*largest, *(x for vectors in moving for x in vectors)]
    before = [
        *(f"{v.name} = {v.text}" for v in loop.uniform),
        *(f"{names[b]}[0] = {text}" for b, text in loop.tile_stores),
        *(f"{x} = each(word(0))" for x in largest),
    ]
    for name, vectors in zip(made.sequences, moving, strict=True):
        sequence = growing[name]
        grows = sequence.step.within(SUM)
        before.append(f"{vectors[0]} = ramp({sequence.first}, {' + '.join([grows] * width)})")
        before += [f"{vectors[1]} = {vectors[0]} + {grows}"] if paired else []
        before += [f"{vector} = {sequence.value(vector)}" for vector in vectors if sequence.halved]
        before.append(f"{name}_step = {sequence.value(f'each({sequence.step}) * ({width} * LANES)')}")
    return made.function, [
        *before,
        f"for i in range(0, {extent}, {at_once} * LANES):",
        f"    {', '.join(kept)}{' = ' * bool(kept)}apply(",
        f"        {step}, {at_once}, {width}, i, {far},",
        *(f"        {name}={names}," for name, names in arguments.items()),
        "    )",
        *(f"{v} = top({x})" for v, x in zip(made.maxima, largest, strict=False)),
        *([f"nan = any_half_above({largest[-1]}, {INFINITE})"] if loop.watched else []),
    ]


def _tuple(names: Iterable[str]) -> str:
    """Write a tuple of names."""
    names = list(names)
    return f"({', '.join(names)}{',' * (len(names) == 1)})"
