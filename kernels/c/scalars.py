"""Prints what computes the scalars of a step as a C function, or says what a caller must compute in its place."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from itertools import count

from fastopt.kernels.c.language import C
from fastopt.kernels.c.tile import RESERVED, wrapped
from fastopt.kernels.compiler.host import (
    Accumulation,
    Choice,
    Condition,
    Expression,
    Operand,
    Tree,
    UntraceableError,
    expressions,
    same,
    trace_scalars,
)
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.text import ATOM, PREFIX, PRODUCT, SUM, Text
from fastopt.kernels.rules.rule import Rule

_INFIX = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "truediv": ("/", PRODUCT)}
_CALLED = {
    "pow": "fastopt_pow",
    "exp": "fastopt_exp",
    "log": "fastopt_log",
    "mod": "fmod",
    "sqrt": "sqrt",
    "abs": "fabs",
}
_LOCAL = re.compile(r"scalars|t|k|x\d+")
"""Names in the printed function."""
_COMPARED = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="}


def print_scalars(program: Program, rule: Rule, names: dict[str, str], kind: str) -> list[str]:
    """Print the function that computes the scalars of step t in float64, as `rule.scalars(t)` does.

    Where that cannot be traced, it is a comment that says so by name, with the values of the first steps.
    """
    try:
        made = trace_scalars(program, rule)
    except UntraceableError as error:
        return _table(program, rule, names, str(error))
    arguments: dict[str, str] = {}
    for name in made.arguments:
        printed = name
        while printed in RESERVED or _LOCAL.fullmatch(printed) or printed in arguments.values():
            printed += "_"
        arguments[name] = printed
    comment = [f"{kind}_at: the scalars of step t = 1, 2, 3, ..., computed in double as fastopt's {_of(rule)} does."]
    comment += [f"  {arguments[name]:<8} {_meaning(value)}" for name, value in made.arguments.items()]
    comment += [
        "Its bits are Python's where pow, exp and log are, which both take from the C library, and where the thread"
        " rounds to nearest. What Python refuses (a division by zero, an overflow) is infinite or NaN here; fastopt"
        " refuses scalars that are not finite."
    ]
    if any(isinstance(x, Accumulation) for x in expressions(made.tree)):
        comment += ["It loops over steps up to t, for what depends on all of them."]
    given = ["int64_t t", *(f"double {x}" for x in arguments.values()), f"{kind} *scalars"]
    known: dict[object, str] = {"t": "(double)t", **arguments}
    body = _tree(made.tree, {x: names[x] for x in program.scalars}, C.types[program.dtype.name], known, count())
    unused = [x for x in ("t", *arguments.values()) if not any(_mentions(line, x) for line in body)]
    return [
        *commented(comment),
        *wrapped(f"void {kind}_at(", given, ") {"),
        *(f"    (void){x};" for x in unused),
        *body,
        "}",
    ]


def _mentions(line: str, name: str) -> bool:
    return re.search(rf"(?<![\w>.]){re.escape(name)}\b", line) is not None


def commented(lines: list[str]) -> list[str]:
    """Make a block comment of lines, which are wrapped."""
    wide: list[str] = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2 * line.startswith("  "))
        wide += textwrap.wrap(line.replace("*/", "* /"), 114, subsequent_indent=indent, break_on_hyphens=False) or [""]
    if len(wide) == 1:
        return [f"/* {wide[0]} */"]
    return [f"{'/* ' if k == 0 else '   ' if line else ''}{line}" for k, line in enumerate(wide[:-1])] + [
        f"   {wide[-1]} */"
    ]


def _of(rule: Rule) -> str:
    return f"{type(rule).__name__}.scalars(t)"


def _meaning(value: object) -> str:
    if callable(value):
        return "the value at t of this setting, which follows a schedule: compute it in the caller"
    return f"the learning rate; {value!r} where this was exported"


def number(x: float) -> Text:
    """Write a double."""
    if math.isinf(x) or math.isnan(x):
        return Text("(double)NAN" if x != x else "(double)INFINITY" if x > 0 else "-(double)INFINITY", PREFIX)
    text = repr(x)
    return Text(text, PREFIX if text.startswith("-") else ATOM)


def _text(x: Operand, known: dict[object, str]) -> Text:
    if not isinstance(x, Expression):
        return number(x)
    if id(x) in known:
        return Text(known[id(x)])
    if x.op == "input":
        return Text(known[x.name], PREFIX if x.name == "t" else ATOM)
    args = [_text(a, known) for a in x.args]
    if x.op in _INFIX:
        sign, binding = _INFIX[x.op]
        return Text(f"{args[0].within(binding)} {sign} {args[1].within(binding + 1)}", binding)
    if x.op == "neg":
        return Text(f"-{args[0].within(ATOM)}", PREFIX)
    return Text(f"{_CALLED[x.op]}({', '.join(args)})")


def _tree(
    tree: Tree,
    fields: dict[str, str],
    kind: str,
    known: dict[object, str],
    numbers: Iterator[int],
    indent: str = "    ",
) -> list[str]:
    """Compute fields, a table from scalar to name; those that a choice does not change come before it.

    What gets a name takes the next of `numbers`.
    """
    if isinstance(tree, Choice):
        before = {x: name for x, name in fields.items() if same(tree.yes, tree.no, x)}
        chosen = {x: name for x, name in fields.items() if x not in before}
        lines = _tree(tree.yes, before, kind, known, numbers, indent) if before else []
        if chosen:
            known, named = _named([tree.condition.a, tree.condition.b], known, numbers, indent)
            lines += named
            yes, no = (_tree(part, chosen, kind, known, numbers, f"{indent}    ") for part in (tree.yes, tree.no))
            lines += [f"{indent}if ({_condition(tree.condition, known)}) {{", *yes]
            lines += [f"{indent}}} else {{", *no, f"{indent}}}"]
        return lines
    known, lines = _named([tree[x] for x in fields], known, numbers, indent)
    for x, name in fields.items():
        text = _text(tree[x], known)
        lines.append(f"{indent}scalars->{name} = {text if kind == 'double' else f'(float){text.within(ATOM)}'};")
    return lines


def _named(
    roots: list[Operand], known: dict[object, str], numbers: Iterator[int], indent: str
) -> tuple[dict[object, str], list[str]]:
    """Name what is used twice and what loops; return what has names now, and the lines that compute it."""
    known, lines = dict(known), []
    for x in _worth_a_name(roots):
        if id(x) in known:
            continue
        name = f"x{next(numbers)}"
        lines += (
            _loop(x, name, known, numbers, indent)
            if isinstance(x, Accumulation)
            else [f"{indent}const double {name} = {_text(x, known)};"]
        )
        known[id(x)] = name
    return known, lines


def _loop(x: Accumulation, name: str, known: dict[object, str], numbers: Iterator[int], indent: str) -> list[str]:
    """Compute an accumulation in a loop over k, whose body knows k and the number so far."""

    def body(tree: Tree, indent: str, own: dict[object, str]) -> list[str]:
        used = [tree.condition.a, tree.condition.b] if isinstance(tree, Choice) else [tree["x"]]
        own, lines = _named(used, own, numbers, indent)
        if isinstance(tree, Choice):
            yes, no = (body(part, f"{indent}    ", own) for part in (tree.yes, tree.no))
            asked = _condition(tree.condition, own)
            return [*lines, f"{indent}if ({asked}) {{", *yes, f"{indent}}} else {{", *no, f"{indent}}}"]
        return [*lines, f"{indent}{name} = {_text(tree['x'], own)};"]

    return [
        f"{indent}double {name} = {number(x.start)};",
        f"{indent}for (int64_t k = 1; (double)k <= {_text(x.args[0], known).within(SUM)}; ++k) {{",
        *body(x.body, f"{indent}    ", {"t": "(double)k", "x": name}),
        f"{indent}}}",
    ]


def _condition(condition: Condition, known: dict[object, str]) -> str:
    a, b = _text(condition.a, known), _text(condition.b, known)
    return f"{a.within(SUM)} {_COMPARED[condition.op]} {b.within(SUM)}"


def _worth_a_name(roots: list[Operand]) -> list[Expression]:
    """List the operations that several others use, and accumulations, operands first."""
    uses: dict[int, int] = {}
    order: list[Expression] = []

    def visit(x: Operand) -> None:
        if isinstance(x, Expression) and x.args:
            uses[id(x)] = uses.get(id(x), 0) + 1
            if uses[id(x)] == 1:
                for a in x.args:
                    visit(a)
                order.append(x)

    for root in roots:
        visit(root)
    return [x for x in order if uses[id(x)] > 1 or isinstance(x, Accumulation)]


def _table(program: Program, rule: Rule, names: dict[str, str], why: str) -> list[str]:
    """Say which scalars a caller must compute, and what they are at first."""
    scalars, steps = host_scalars(program, rule), (1, 2, 3)
    columns = [dict(zip(program.scalars, scalars(t), strict=True)) for t in steps]
    width = max(len(names[s]) for s in program.scalars)
    rows = [f"  {'':<{width}}  " + "  ".join(f"{f't = {t}':>24}" for t in steps)]
    rows += [
        f"  {names[s]:<{width}}  " + "  ".join(f"{float(column[s])!r:>24}" for column in columns)
        for s in program.scalars
    ]
    head = [
        f"How the scalars of step t are computed is not printed: {_of(rule)} cannot be written in C. {why}",
        "The caller computes them, in double, as that method does, and rounds each once to the type of its field:",
    ]
    lines = [part for line in head for part in textwrap.wrap(line, 114)]
    return [f"{'/* ' if k == 0 else '   '}{line}" for k, line in enumerate([*lines, *rows[:-1]])] + [
        f"   {rows[-1]} */"
    ]
