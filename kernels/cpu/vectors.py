"""Printed loops over the vectors of a whole tile: `LANES` elements at once, or `LANES` words of two elements each.

A loop over single elements is as fast as what LLVM recognizes in it, and cannot prefetch. Here each operation is one of
vectors; narrow elements are written several vectors at once, where packing them costs least.
"""

from __future__ import annotations

from fastopt.kernels.compiler.lowering import Loop
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cpu.steps import print_step
from fastopt.kernels.cpu.tuning import processor_prefetches
from fastopt.kernels.formats import TILE


def print_vectors(
    loop: Loop, step: str, names: dict[str, str], program: Program, *, paired: bool
) -> tuple[list[str], list[str]]:
    """Print a function, `step`, and the loop that calls it for vectors of elements, or of pairs of them.

    The loop is over a whole tile or, in a program that knows none, over any number of them.
    """
    made = print_step(loop, step, names, program)
    if not made.results:
        return [], ["pass"]
    sizes = {names[b.name]: b.dtype.itemsize for b in program.buffers if b.elementwise}
    halves, width = (("_0", "_1"), 2) if paired else (("",), 1)
    size = {b: width * s for b, s in sizes.items()}  # bytes of what a lane holds
    narrow = [b for b in made.stores if size[b] < 4]
    at_once = max([2, *(4 // size[b] for b in narrow)])
    extent = f"{TILE // width}" if program.noise or program.tiled else f"count // {width}" if paired else "count"
    sequences = [name for name, _, _ in loop.sequences]
    # Without prefetches this would be one of what is loaded next: 2 to 3 % of a loop that only reads.
    lines = [f"fetch({b}, i, far, {at_once})" for b in made.loads if program.compressed or processor_prefetches()]
    for k in range(at_once):
        if made.loads:
            vectors = ", ".join(f"vector({b}, i, {k})" for b in made.loads)
            lines.append(f"{', '.join(f'{b}_i' for b in made.loads)} = {vectors}")
        for half, take in zip(halves, ("low", "high") if paired else ("",), strict=True):

            def other(name: str, half: str = half, k: int = k) -> str:
                if name == "index":
                    first = f"{width} * (i + {k} * LANES){' + 1' if half == '_1' else ''}"
                    return f"ramp(word({first}), word({width}))"
                return f"{name}_each{half}" if name in sequences else name

            elements = [f"{take}({b}_i, {8 * sizes[b]})" if paired else f"{b}_i" for b in made.loads]
            spilled = [f"vector({v}_spill{half}, i, {k})" for v in made.reloads]
            results = [f"{x}{half}" if paired or x in made.spills else f"{x}_{k}" for x in made.results]
            lines.append(f"{', '.join(results)} = {made.call(elements, spilled, other)}")
            lines += [f"store({v}_spill{half}, i, {k}, ({v}{half},))" for v in made.spills]
            lines += [f"{v}_each = umax({v}_each, {v}{half or f'_{k}'})" for v in made.maxima]
            lines += [f"{v}_each{half} = {v}_each{half} + {v}_step" for v in sequences]
        for b in made.stores:
            joined = f"join({b}_0, {b}_1, {8 * sizes[b]})" if paired else f"{b}_{k}"
            if b not in narrow:
                lines.append(f"store({b}, i, {k}, ({joined},))")
            elif paired:
                lines.append(f"{b}_pair{k} = {joined}")
    for b in narrow:
        parts = ", ".join(f"{b}_pair{k}" if paired else f"{b}_{k}" for k in range(at_once))
        lines.append(f"store({b}, i, 0, ({parts},))")
    before = [
        *(f"{v.name} = {v.text}" for v in loop.uniform),
        *(f"{names[b]}[0] = {text}" for b, text in loop.tile_stores),
        *(f"{v}_each = each(word(0))" for v in made.maxima),
    ]
    for name, first, difference in loop.sequences:
        if paired:
            before += [
                f"{name}_each_0 = ramp({first}, {difference} + {difference})",
                f"{name}_each_1 = {name}_each_0 + {difference}",
            ]
        else:
            before.append(f"{name}_each = ramp({first}, {difference})")
        before.append(f"{name}_step = each({difference}) * ({width} * LANES)")
    return made.function, [
        *before,
        f"for i in range(0, {extent}, {at_once} * LANES):",
        *(f"    {line}" for line in lines),
        *(f"{v} = top({v}_each)" for v in made.maxima),
    ]
