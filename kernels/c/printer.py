"""Prints a Program as one C99 source, which is C++ too: what a step needs, in functions that call nothing of fastopt's.

A program in one pass becomes a function that steps a tensor; one in phases, a function that steps all tensors at once.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from fastopt.kernels.c.comments import arguments_comment, head_comment, tensor_comment
from fastopt.kernels.c.language import C
from fastopt.kernels.c.scalars import commented, print_scalars
from fastopt.kernels.c.tile import element, names_of, passed, pointers, spelled_out, tiles_function, wrapped
from fastopt.kernels.compiler.lowering import condition_lines
from fastopt.kernels.compiler.program import Program, sum_name
from fastopt.kernels.rules.rule import Rule


def print_export(program: Program, rule: Rule, command: str) -> str:
    """Print the source with which to take the steps of a rule; `command` is what exports it again."""
    names = names_of(program)
    body = print_host_functions(program, rule, names)
    body += _phases(program, rule, names) if program.phases else _one_pass(program, rule, names)
    return "\n".join(
        [
            *commented(head_comment(program, rule, command)),
            "",
            header(),
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            *body,
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            "#if defined(__GNUC__) && !defined(__clang__)",
            "#pragma GCC pop_options",
            "#else",
            "#pragma STDC FP_CONTRACT DEFAULT",
            "#endif",
            "",
        ]
    )


def print_host_functions(program: Program, rule: Rule, names: dict[str, str]) -> list[str]:
    """Print what computes the scalars and the keys of a step."""
    lines: list[str] = []
    if program.scalars:
        lines += [*_scalars_type(program, names), "", *print_scalars(program, rule, names, scalars_type(program)), ""]
    if program.noise:
        lines += [*_keys(program), ""]
    return lines


@lru_cache(maxsize=1)
def header() -> str:
    """Return tile.h."""
    return (files("fastopt.kernels.c") / "tile.h").read_text(encoding="utf-8")


def entry(program: Program) -> str:
    """Return the name of the function that takes a step."""
    return spelled_out(program.name)


def scalars_type(program: Program) -> str:
    """Return the name of the type that holds the scalars of a step."""
    return f"{entry(program)}_scalars"


def _scalars_type(program: Program, names: dict[str, str]) -> list[str]:
    kind = C.types[program.dtype.name]
    return [
        "/* What a step takes besides its arrays: numbers that depend on settings and t alone. */",
        "typedef struct {",
        *(f"    {kind} {names[s]};" for s in program.scalars),
        f"}} {scalars_type(program)};",
    ]


def _keys(program: Program) -> list[str]:
    return [
        "/* The keys of the random numbers of step t: others for every seed and step. */",
        f"void {entry(program)}_keys_at(uint64_t seed, uint64_t t, uint32_t keys[2]) {{",
        "    const uint64_t key = fastopt_mix64(fastopt_mix64(seed) ^ t);",
        "    keys[0] = (uint32_t)key;",
        "    keys[1] = (uint32_t)(key >> 32);",
        "}",
    ]


def _last_arguments(program: Program) -> list[str]:
    scalars = [f"const {scalars_type(program)} *scalars"] if program.scalars else []
    return [*(["const uint32_t keys[2]"] if program.noise else []), *scalars]


def _one_pass(program: Program, rule: Rule, names: dict[str, str]) -> list[str]:
    name = entry(program)
    last = _last_arguments(program)
    if program.noise:
        last.insert(1, "uint64_t offset")
    given = ["size_t n", *pointers(program, names), *last]
    handed = [x.replace("[2]", "").replace("*", " ").split()[-1] for x in given]
    return [
        *tiles_function(program, names, scalars_type(program)),
        "",
        *commented(arguments_comment(program, rule, names)),
        *wrapped(f"void {name}(", given, ") {"),
        "    const uint64_t mode = fastopt_standard_mode();",
        *wrapped(f"    {name}_tiles(", handed, ");"),
        "    fastopt_restore_mode(mode);",
        "}",
    ]


def _phases(program: Program, rule: Rule, names: dict[str, str]) -> list[str]:
    """Print the functions of all phases, and the one that calls them for each tensor."""
    name, lines = entry(program), []
    tensor = f"{name}_tensor"
    for phase in program.phases:
        lines += [*tiles_function(phase, names_of(phase), scalars_type(program)), ""]
    fields = ["size_t n;", *(f"{element(b)} *{names[b.name]};" for b in program.buffers)]
    fields += ["uint64_t offset;"] if program.noise else []
    fields += ["double *work;", f"double totals[{len(program.totals)}];"]
    lines += [
        *commented(tensor_comment(program, rule, names)),
        "typedef struct {",
        *(f"    {field}" for field in fields),
        f"}} {tensor};",
        "",
        *commented(arguments_comment(program, rule, names)),
        *wrapped(f"bool {name}(", ["size_t count", f"{tensor} *tensors", *_last_arguments(program)], ") {"),
        "    const uint64_t mode = fastopt_standard_mode();",
        *([f"    double all[{len(program.totals)}] = {{0.0}};"] if program.over_all else []),
    ]
    for number, phase in enumerate(program.phases[:-1]):
        lines += _loop(tensor, _phase_calls(program, phase, number))
    taken = "true"
    if program.condition is not None:
        lines += _condition(program, names)
        taken = "taken"
        zeroed = [b for b in program.buffers if b.buffer == "g" and b.written]
        other = [f"memset(tensor->{names[b.name]}, 0, tensor->n * sizeof *tensor->{names[b.name]});" for b in zeroed]
        lines += ["    if (!taken) {", *(f"    {x}" for x in (_loop(tensor, other) if other else [])), "    } else {"]
        lines += [f"    {x}" for x in _loop(tensor, _phase_calls(program, program.phases[-1], len(program.phases) - 1))]
        lines.append("    }")
    else:
        lines += _loop(tensor, _phase_calls(program, program.phases[-1], len(program.phases) - 1))
    return [*lines, "    fastopt_restore_mode(mode);", f"    return {taken};", "}"]


def _loop(kind: str, lines: list[str]) -> list[str]:
    """Print a loop over the tensors."""
    return [
        "    for (size_t k = 0; k < count; ++k) {",
        f"        {kind} *tensor = tensors + k;",
        *(f"        {line}" for line in lines),
        "    }",
    ]


def _phase_calls(program: Program, phase: Program, number: int) -> list[str]:
    """Print the call of a phase for one tensor, and what folds the sums that it writes."""
    sums = {sum_name(k): place for place, k in enumerate(program.known_after(number))} if phase.sums else {}
    totals = {f"total {k}": k for k in range(len(program.totals))}
    given = ["tensor->n"]
    for b in passed(phase):
        if b.name in sums:
            given.append(f"tensor->work + {sums[b.name]} * tiles" if sums[b.name] else "tensor->work")
        elif b.name in totals:
            k = totals[b.name]
            given.append(f"all + {k}" if program.place_over_all(k) is not None else f"tensor->totals + {k}")
        else:
            given.append(f"tensor->{names_of(program)[b.name]}")
    given += ["keys", "tensor->offset"] if phase.noise else []
    given += ["scalars"] if phase.scalars else []
    lines = ["const size_t tiles = (tensor->n + FASTOPT_TILE - 1) / FASTOPT_TILE;"] if sums else []
    lines += [line[8:] for line in wrapped(f"        {entry(phase)}_tiles(", given, ");")]
    for k in program.known_after(number) if sums else []:
        work = f"tensor->work + {sums[sum_name(k)]} * tiles" if sums[sum_name(k)] else "tensor->work"
        lines.append(f"tensor->totals[{k}] = fastopt_total({work}, tiles);")
        if program.place_over_all(k) is not None:
            lines.append(f"all[{k}] = all[{k}] + tensor->totals[{k}];")
    return lines


def _condition(program: Program, names: dict[str, str]) -> list[str]:
    """Print what decides whether the step is taken."""
    totals, scalars = program.condition_inputs
    kind, lines = C.types[program.dtype.name], condition_lines(program, C)
    return [
        *(f"    const {kind} total{k} = ({kind})all[{k}];" for k in totals),
        *(f"    const {kind} s{k} = scalars->{names[program.scalars[k]]};" for k in scalars),
        *(f"    const {C.types[v.dtype.name]} {v.name} = {v.text};" for v in lines),
        f"    const bool taken = {lines[-1].name};",
    ]
