"""Prints a Program as JavaScript: an object with what a step needs to know, and a function for each pass over memory.

The object is called like the program. `takeStep(program, memory, scalars, keys)` of `runtime.js` takes a step with it.
Printing needs NumPy only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from fastopt.errors import BackendError
from fastopt.kernels.compiler.graph import Trace, walk
from fastopt.kernels.compiler.lowering import Loop, lower, printed_names
from fastopt.kernels.compiler.noise import MIXING
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.symbols import Symbol
from fastopt.kernels.compiler.text import Text
from fastopt.kernels.javascript.language import JAVASCRIPT, WORDS

FORMATS = ("f32", "f64")
"""The storage formats that are printed: a page's problems are small, and JavaScript has no 16-bit arithmetic."""

# Names of the skeleton, of runtime.js and of the language, which a rule's own names must not hide.
_SKELETON = (
    "n first count tile i key0 key1 offset tile_low tile_high index abs ceil floor fround imul sqrt trunc sign copysign"
    " rint wordOf floatOf tileTotal TILE bits bitsAsFloat"
)
_RESERVED = frozenset([*_SKELETON.split(), *WORDS])


def print_program(program: Program) -> str:
    """Print the object of a program, without `runtime.js`.

    Raises:
        BackendError: a buffer is stored in a format that is not of full precision, or the step may be skipped.

    """
    others = {b: form.name for b, form in program.formats.items() if form.name not in FORMATS}
    if others:
        raise BackendError(
            "JavaScript is printed for storage in full precision only.",
            got=", ".join(f"{b}={name}" for b, name in others.items()),
            expected=" or ".join(FORMATS),
            do='pass storage="f32"',
        )
    if program.condition is not None:
        what = "JavaScript is not printed for rules that may skip a step."
        raise BackendError(what, got=program.rule, do="print the rule inside of it")
    passes = [line for phase in program.phases or (program,) for line in _pass_lines(phase)]
    lines = [
        f"// {program.traffic}.",
        f"const {program.name} = {{",
        f'  name: "{program.name}",',
        f"  array: {JAVASCRIPT.types[program.dtype.name]},",
        f"  state: {json.dumps(program.state)},",
        f"  scalars: {json.dumps(program.scalars)},",
        f"  totals: {json.dumps([node.value[0] for node in program.totals])},",
        "  passes: [",
        *(f"    {line}" for line in passes),
        "  ],",
        "};",
        "",
    ]
    return "\n".join(lines)


@lru_cache(maxsize=512)
def print_source(program: Program) -> str:
    """Print `program` as one complete script, which a browser or Node runs as it stands."""
    return f"{runtime()}\n{print_program(program)}"


@cache
def runtime() -> str:
    """Return runtime.js, with the constants of the noise."""
    increment, *rounds, last = MIXING
    pairs = ", ".join(f"[{shift}n, {factor:#x}n]" for shift, factor in rounds)
    mixing = f"const MIXING = {{ increment: {increment:#x}n, rounds: [{pairs}], last: {last}n }};"
    return f"{(files('fastopt.kernels.javascript') / 'runtime.js').read_text(encoding='utf-8')}\n{mixing}\n"


def print_function(name: str, function: Callable[..., Any], **inputs: Any) -> str:
    """Trace a function of numbers, and print it as one of JavaScript that returns its results in an array.

    `inputs` are its parameters with their NumPy types. It may use what a rule's `update` may.

    >>> print(print_function("slope", lambda x, y: (x, 50 * y), x=np.float64, y=np.float64))
    function slope(x, y) {
      return [x, 50 * y];
    }
    """
    trace = Trace(name)
    symbols = [Symbol(trace, trace.node("scalar", np.dtype(dtype), value=x), True) for x, dtype in inputs.items()]
    returned = function(*symbols)
    roots = [x._node for x in (returned if isinstance(returned, tuple) else (returned,))]
    lines, texts, uses = [], {}, {}
    for node in walk(roots):
        for a in node.args:
            uses[id(a)] = uses.get(id(a), 0) + 1
    for node in walk(roots):
        text = Text(node.value) if node.op == "scalar" else JAVASCRIPT.write(node, [texts[id(a)] for a in node.args])
        if node.args and uses.get(id(node), 0) > 1:
            lines.append(f"  const x{len(lines)} = {text};")
            text = Text(f"x{len(lines) - 1}")
        texts[id(node)] = text
    results = ", ".join(texts[id(node)] for node in roots)
    return "\n".join([f"function {name}({', '.join(inputs)}) {{", *lines, f"  return [{results}];", "}"])


def _pass_lines(program: Program) -> list[str]:
    """Print one pass over memory."""
    names = printed_names(program, _RESERVED)
    loops = lower(program, names, JAVASCRIPT)
    noise = ["key0", "key1", "offset"] if program.noise else []
    parameters = ["n", *(names[b.name] for b in program.buffers), *noise, *(names[s] for s in program.scalars)]
    sums = sorted(int(b.removeprefix("sum ")) for b in program.results if b.startswith("sum ")) if program.sums else []
    spills = {v.name: v.dtype for loop in loops for v in loop.spills}
    by_tile = program.noise or program.sums or len(loops) > 1
    body = [line for loop in loops for line in _loop_lines(loop, names, by_tile=by_tile)]
    if by_tile:
        numbers = ["const tile = offset / TILE + first / TILE;"] if program.noise else []
        numbers += ["const tile_low = tile >>> 0, tile_high = floor(tile / 2 ** 32);"] if program.noise else []
        body = [
            "for (let first = 0; first < n; first += TILE) {",
            "  const count = Math.min(TILE, n - first);",
            *(f"  {line}" for line in (*numbers, *body)),
            "}",
        ]
    return [
        "{",
        f"  buffers: {json.dumps([b.name for b in program.buffers])},",
        f"  sums: {json.dumps(sums)},",
        f"  noise: {'true' if program.noise else 'false'},",
        f"  step({', '.join(parameters)}) {{",
        *(f"    const {name}_spill = new {JAVASCRIPT.types[kind.name]}(TILE);" for name, kind in spills.items()),
        *(f"    {line}" for line in body),
        "  },",
        "},",
    ]


def _loop_lines(loop: Loop, names: dict[str, str], *, by_tile: bool) -> list[str]:
    """Print one loop over the elements of a tile, or of all, and what comes before it."""
    lines = [f"const {names[b]}_i = {names[b]}[i];" for b in loop.loads]
    lines += [f"const {v.name} = {v.name}_spill[i - first];" for v in loop.reloads]
    lines += [f"const {v.name} = {v.text};" for v in loop.lines]
    lines += [f"{v.name}_spill[i - first] = {v.name};" for v in loop.spills]
    lines += [f"{names[b]}[i] = {text};" for b, text in loop.stores]
    once = [f"const {v.name} = {v.text};" for v in loop.uniform]
    once += [f"{names[b]}[first / TILE] = {text};" for b, text in loop.tile_stores]
    if not lines:
        return once
    head = "for (let i = first; i < first + count; i++) {" if by_tile else "for (let i = 0; i < n; i++) {"
    if by_tile and any("index" in line for line in lines):
        lines = ["const index = i - first;", *lines]
    return [*once, head, *(f"  {line}" for line in lines), "}"]
