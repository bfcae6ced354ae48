"""Prints the part of an exported CUDA source that steps rules with totals: several kernels, and what launches them.

The order is that of docs/decisions/0020: phase by phase, the sums of a tensor's tiles are folded 256 at a time; totals
over all parameters add up those of the tensors in the order in which they are given.
"""

from __future__ import annotations

from typing import Any

from fastopt.kernels.c.comments import OFFSET, argument_table, buffer_comment
from fastopt.kernels.c.printer import entry, scalars_type
from fastopt.kernels.c.scalars import commented
from fastopt.kernels.compiler.operations import Target
from fastopt.kernels.compiler.program import SKIPPED, Buffer, Program, sum_name, total_name
from fastopt.kernels.cuda.printer import condition_entry, print_condition, print_entries
from fastopt.kernels.cuda.tile import wrapped

FOLD = """static __global__ void __launch_bounds__(THREADS) fastopt_fold(
    const double* sums, Index count, double* folded
) {
    // Each warp folds 256 sums.
    for (Index number = first_tile(); number * TILE < count; number += warps_in_grid()) {
        double held[HELD];
        load<2>(held, sums + number * TILE, count - number * TILE);
        const double sum = tile_total<2>(held);
        if (lane() == 0) folded[number] = sum;
    }
}

static __global__ void fastopt_keep_total(const double* sum, Index count, double* total, double* all) {
    *total = count ? *sum : 0.0;
    if (all) *all = *all + *total;
}
"""

ZERO = """
static __global__ void __launch_bounds__(THREADS) fastopt_zero(unsigned char* at, Index bytes, const double* flags) {
    if (flags[1] == 0.0) return;
    for (Index k = Index(blockIdx.x) * THREADS + threadIdx.x; k < bytes; k += Index(gridDim.x) * THREADS) at[k] = 0;
}
"""

LAUNCHES = """static unsigned fastopt_blocks(size_t n) {
    const size_t blocks = (n + 1023) / 1024;
    return (unsigned)(blocks < 2147483647 ? blocks : 2147483647);
}

/* Adds up `count` sums, 256 at a time; `scratch` has room for 2 * ((count + 255) / 256). */
static void fastopt_total(
    cudaStream_t stream, const double *sums, size_t count, double *scratch, double *total, double *all) {
    double *const other = scratch + (count + 255) / 256;
    double *folded = scratch;
    while (count > 1) {
        fastopt_fold<<<fastopt_blocks(count), THREADS, 0, stream>>>(sums, (Index)count, folded);
        count = (count + 255) / 256;
        sums = folded;
        folded = folded == other ? scratch : other;
    }
    fastopt_keep_total<<<1, 1, 0, stream>>>(sums, (Index)count, total, all);
}
"""


def print_kernels(program: Program, target: Target) -> str:
    """Print the kernels of all phases, and those that fold sums and decide about a step."""
    parts = [
        f"namespace phase{k} {{\n\n{print_entries(phase, target, for_graphs=False)}\n}}  // namespace phase{k}\n"
        for k, phase in enumerate(program.phases)
    ]
    condition = [print_condition(program, target, for_graphs=False)] if program.condition is not None else []
    return "\n".join([*parts, FOLD, *([ZERO] if _zeroed(program) else []), *condition])


def _zeroed(program: Program) -> list[Buffer]:
    """List the gradients that a skipped step sets to zero."""
    return [b for b in program.buffers if b.buffer == "g" and b.written] if program.condition is not None else []


def print_launch(program: Program, rule: Any, names: dict[str, str], kinds: dict[str, str]) -> list[str]:
    """Print the struct of a tensor and the function that launches a step of all tensors."""
    name, last = entry(program), len(program.phases) - 1
    tensor, skips = f"{name}_tensor", program.condition is not None
    fields = ["size_t n;"]
    fields += [f"{'' if b.written else 'const '}{kinds[b.dtype.name]} *{names[b.name]};" for b in program.buffers]
    fields += ["uint64_t offset;"] if program.noise else []
    fields += ["double *work;", "double *totals;"]
    given = ["cudaStream_t stream", "size_t count", f"const {tensor} *tensors"]
    given += ["double *all"] if program.over_all else []
    given += ["double *flags"] if skips else []
    given += ["const uint32_t keys[2]"] if program.noise else []
    given += [f"const {scalars_type(program)} *scalars"] if program.scalars else []
    lines = [
        *LAUNCHES.splitlines(),
        "",
        *commented(_tensor_comment(program, rule, names)),
        "typedef struct {",
        *(f"    {field}" for field in fields),
        f"}} {tensor};",
        "",
        *commented(_launch_comment(program)),
        *wrapped(f"cudaError_t {name}_launch(", given, ") {"),
    ]
    if program.over_all:
        lines += [
            f"    const cudaError_t error = cudaMemsetAsync(all, 0, {len(program.over_all)} * sizeof *all, stream);",
            "    if (error != cudaSuccess) return error;",
        ]
    for number in range(last):
        lines += _loop(tensor, _phase(program, number, names))
    if skips:
        totals, scalars = program.condition_inputs
        passed = ["flags", "NULL", *(_total(program, k) for k in totals)]
        passed += [f"scalars->{names[program.scalars[k]]}" for k in scalars]
        lines += wrapped(f"    {condition_entry(program)}<<<1, 32, 0, stream>>>(", passed, ");")
    lines += _loop(tensor, _phase(program, last, names))
    for g in (names[b.name] for b in _zeroed(program)):
        size = f"tensor->n * sizeof *tensor->{g}"
        zero = (
            f"fastopt_zero<<<fastopt_blocks({size}), THREADS, 0, stream>>>((unsigned char*)tensor->{g}, {size}, flags);"
        )
        lines += _loop(tensor, [f"if (tensor->n) {zero}"])
    return [*lines, "    return cudaGetLastError();", "}"]


def _loop(kind: str, lines: list[str]) -> list[str]:
    return [
        "    for (size_t k = 0; k < count; ++k) {",
        f"        const {kind} *tensor = tensors + k;",
        *(f"        {line}" for line in lines),
        "    }",
    ]


def _total(program: Program, k: int) -> str:
    """Write the address of total number k, of a tensor or over all."""
    place = program.place_over_all(k)
    return _plus("tensor->totals", k) if place is None else _plus("all", place)


def _sums(place: int) -> str:
    """Write the address of the sums of tiles that lie in this place."""
    return _plus("tensor->work", f"{place} * tiles" if place > 1 else "tiles" if place else 0)


def _plus(address: str, number: int | str) -> str:
    return f"{address} + {number}" if number else address


def _most(program: Program) -> int:
    """Return the largest number of sums that a phase writes."""
    return max(len(program.known_after(k)) for k in range(len(program.phases) - 1))


def _phase(program: Program, number: int, names: dict[str, str]) -> list[str]:
    """Print the launches of a phase for one tensor, with those that fold the sums that it writes."""
    phase, last = program.phases[number], number == len(program.phases) - 1
    known = [] if last else program.known_after(number)
    own = {SKIPPED: "flags + 1"}
    own |= {sum_name(k): _sums(place) for place, k in enumerate(known)}
    own |= {total_name(k): _total(program, k) for k in range(len(program.totals))}
    passed = ["(Index)tensor->n", *(own.get(b.name) or f"tensor->{names[b.name]}" for b in phase.buffers)]
    passed += ["keys[0]", "keys[1]", "(Index)tensor->offset"] if phase.noise else []
    passed += [f"scalars->{names[s]}" for s in phase.scalars]
    head = f"    phase{number}::{entry(phase)}<<<fastopt_blocks(tensor->n), THREADS, 0, stream>>>("
    lines = ["if (tensor->n) {", *wrapped(head, passed, ");"), "}"]
    if not known:
        return lines
    lines.insert(0, "const size_t tiles = (tensor->n + 255) / 256;")
    for place, k in enumerate(known):
        over = "NULL" if program.place_over_all(k) is None else _total(program, k)
        folded = ["stream", _sums(place), "tiles", _sums(_most(program)), _plus("tensor->totals", k), over]
        lines += wrapped("fastopt_total(", folded, ");")
    return lines


def _tensor_comment(program: Program, rule: Any, names: dict[str, str]) -> list[str]:
    rows = [("n", "number of elements")]
    rows += [(names[b.name], f"on the device: {buffer_comment(program, rule, b)}") for b in program.buffers]
    rows += [("offset", OFFSET)] if program.noise else []
    size = f"{_most(program)} * T + 2 * ((T + 255) / 256)"
    written = "written: the totals of this tensor, in the order in which the rule takes them"
    rows += [("work", f"on the device: double[{size}], where T = (n + 255) / 256, written: scratch memory")]
    rows += [("totals", f"on the device: double[{len(program.totals)}], {written}")]
    return ["A tensor of a step; the struct lies on the host. Arrays do not overlap.", *argument_table(rows)]


def _launch_comment(program: Program) -> list[str]:
    name, totals = entry(program), len(program.over_all)
    rows = [
        ("stream", "where it runs; the function does not wait"),
        ("count", "number of tensors; totals over all parameters add theirs in this order"),
        ("tensors", "on the host, read before the function returns: all tensors of the step"),
    ]
    if program.over_all:
        rows.append(("all", f"on the device: double[{totals}], written: the totals over all parameters"))
    if program.condition is not None:
        written = "written: 1 and 0 if the step is taken, 0 and 1 if it is skipped; a skipped step's t is taken again"
        rows.append(("flags", f"on the device: double[2], {written}"))
    if program.noise:
        rows.append(("keys", f"on the host, read: those of step t, from {name}_keys_at"))
    if program.scalars:
        rows.append(("scalars", f"on the host, read: those of step t, see {scalars_type(program)}"))
    return ["One step of all tensors, in place, on a stream.", *argument_table(rows)]
