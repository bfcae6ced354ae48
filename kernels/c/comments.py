"""The comments of an exported source: what a step does, what each argument is, and what its bits depend on."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from fastopt.kernels.c.language import C
from fastopt.kernels.c.tile import names_of, passed, spelled_out
from fastopt.kernels.compiler.program import Buffer, Program
from fastopt.kernels.rules.rule import Rule, initial, is_rule

OFFSET = "number of element 0 among all parameters, a multiple of 256: where it is the same, so are random numbers"
_WHAT = {"p": "the parameter", "g": "the gradient"}


def settings_text(rule: Any) -> str:
    """Write a rule with its settings; a callable is called a schedule."""
    parts = []
    for f in dataclasses.fields(rule):
        value = getattr(rule, f.name)
        if is_rule(value):
            parts.append(settings_text(value))
        else:
            shown = [("a schedule" if callable(x) else repr(x)) for x in (value if type(value) is tuple else (value,))]
            parts.append(f"{f.name}=({', '.join(shown)})" if type(value) is tuple else f"{f.name}={shown[0]}")
    return f"{type(rule).__name__}({', '.join(parts)})"


def head_comment(program: Program, rule: Rule, command: str) -> list[str]:
    """Return what stands at the top."""
    lines = [
        f"{spelled_out(program.name)}: one optimizer step on the CPU, computed in {program.dtype.name}.",
        f"Printed by `{command}`; do not edit.",
        "",
        f"Rule      {settings_text(rule)}",
        f"Memory    {program.traffic} and step.",
        "Compile   cc -O3 -march=native -fno-math-errno -c FILE    (C99 or C++11, or later; link with -lm). Without"
        " -fno-math-errno the bits are the same, but roots are computed one by one.",
        "",
        "The bits are those of fastopt on every backend, at any optimization level, with and without AVX2 and FMA, if",
        "  - the compiler keeps to IEEE 754: no -ffast-math nor parts of it, of which those that the compiler shows are"
        " refused below; multiplication and addition are not contracted, for which the pragmas below suffice, but not"
        " against clang's -ffp-contract=fast;",
        "  - the thread rounds to nearest and keeps subnormal numbers: GCC and Clang set x86-64 and AArch64 so during a"
        " step; elsewhere that is the caller's.",
        "Where NaN is stored as float or double, its sign and payload are the processor's.",
        "",
        "Tiles. 256 consecutive elements are a tile: element i is in tile i / 256. "
        + (
            "A tile of a buffer in 8 bits has one scale; "
            if program.tiled
            else "Each is computed by itself, whatever the others are; "
        )
        + "the last tile may have fewer, and nothing beyond element n - 1 is read or written.",
    ]
    if not program.phases:
        own = [names_of(program)[b.name] for b in program.buffers if b.tiled]
        first = "first a multiple of 256" if program.tiled or program.noise else "any first"
        scales = f", {', '.join(f'{x} + first / 256' for x in own)}" if own else ""
        offset = ", offset + first" if program.noise else ""
        lines += [
            "",
            "Threads. Steps of ranges that do not overlap may run at once, and have the same bits as one step over all:"
            f" pass the range's length as n, p + first and so on for each array{scales}{offset}, with {first}.",
        ]
    return lines


def arguments_comment(program: Program, rule: Rule, names: dict[str, str]) -> list[str]:
    """Return what each argument of the step is."""
    name = spelled_out(program.name)
    noise = [("keys", f"const uint32_t[2], read: those of step t, from {name}_keys_at")] if program.noise else []
    scalars = [("scalars", f"read: those of step t, see {name}_scalars")] if program.scalars else []
    if program.phases:
        rows = [
            ("count", "number of tensors; totals over all parameters add theirs in this order"),
            ("tensors", "all tensors of the step, with their memory; totals are written"),
            *noise,
            *scalars,
        ]
        returned = "Returns whether the step was taken: true, where the rule skips none."
        head = [f"One step of all tensors. Memory of a tensor is as said at {name}_tensor.", returned]
        return [*head, *argument_table(rows)]
    rows = [("n", "number of elements; 0 is nothing to do")]
    rows += [(names[b.name], buffer_comment(program, rule, b)) for b in passed(program)]
    rows += [*noise, *([("offset", OFFSET)] if noise else []), *scalars]
    return [
        "One step of a tensor, in place. Arrays do not overlap; each is aligned as its type is.",
        *argument_table(rows),
    ]


def argument_table(rows: list[tuple[str, str]]) -> list[str]:
    """Return lines that say what each argument is, wrapped."""
    width = max(len(name) for name, _ in rows)
    return [
        line
        for name, text in rows
        for line in textwrap.wrap(
            text,
            112,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
            break_on_hyphens=False,
        )
    ]


def tensor_comment(program: Program, rule: Rule, names: dict[str, str]) -> list[str]:
    """Return what each field of a tensor is."""
    most = max(len(program.known_after(k)) for k in range(len(program.phases) - 1))
    size = "(n + 255) / 256" if most == 1 else f"{most} * ((n + 255) / 256)"
    rows = [("n", "number of elements")]
    rows += [(names[b.name], buffer_comment(program, rule, b)) for b in program.buffers]
    rows += [("offset", OFFSET)] if program.noise else []
    rows += [("work", f"double[{size}], written: scratch memory")]
    rows += [("totals", "written: the totals of this tensor, in the order in which the rule takes them")]
    return ["A tensor of a step. Arrays do not overlap; each is aligned as its type is.", *argument_table(rows)]


def buffer_comment(program: Program, rule: Rule, b: Buffer) -> str:
    """Return what an array is: its type and size, whether it is read and written, and what it holds."""
    form = program.formats[b.buffer]
    size = "(n + 255) / 256" if b.tiled else "n"
    access = "read and written" if b.read and b.written else "written" if b.written else "read"
    kind = f"{'' if b.written else 'const '}{C.types[b.dtype.name]}[{size}]"
    what = _WHAT.get(b.buffer, f"the state {b.buffer}")
    start = ""
    if b.buffer not in _WHAT:
        at = initial(rule).get(b.buffer, 0.0)
        start = f"; before the first step each value is {at!r}" if at else "; zero bytes before the first step"
    plane = form.plane_names(b.buffer)[b.name]
    of = f", the plane {plane.suffix}" if plane.suffix else f" as {plane.view}" if plane.view else ""
    described = " ".join((type(form).__doc__ or "").split()).split(". ")[0].rstrip(".")
    stored = "" if form.plain or plane.suffix else f", stored as {form.name}: {described}"
    return f"{kind}, {access}: {what}{of}{stored}{start}"
