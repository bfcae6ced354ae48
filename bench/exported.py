"""The speed of exported C kernels beside the Numba kernels of the same rules, in one thread.

    python -m fastopt.bench.exported [--compiler gcc] [--compiler clang] [--rounds 31] [--out FILE]

Both are called in a loop in C, by their addresses, on the same arrays. A round times each once, in turns, for about
`MILLISECONDS`; the ratio of a round is C's time over Numba's, and the table has the median of the ratios, with their
20th and 80th percentiles, so that other programs on the machine, which slow both of a round, matter little. Before they
are timed, both must have the same bits.
"""

from __future__ import annotations

import csv
import ctypes
import platform
import re
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

import fastopt
from fastopt.demo import machine
from fastopt.kernels.c.printer import entry, print_export, scalars_type
from fastopt.kernels.compiler.noise import noise_keys
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.cpu.c_function import CFunction, c_function
from fastopt.kernels.formats import pack

RULE = fastopt.Adam(weight_decay=0.01)
STORAGES = ("f32", "bf16", "8bit")
SIZES = {"4 Ki": 1 << 12, "16 Mi": 1 << 24}
MILLISECONDS = 40
HEADING = ["storage", "parameters", "C ns", "Numba ns", "C / Numba", "20th percentile", "80th percentile", "compiler",
           "processor", "python", "numba"]  # fmt: skip
FLAGS = ("-O3", "-march=native", "-fno-math-errno")


class Timed(NamedTuple):
    """Nanoseconds per parameter of both kernels, one of each in a round."""

    c: np.ndarray
    numba: np.ndarray

    @property
    def row(self) -> list[str]:
        """Median times, and the median ratio with its 20th and 80th percentiles."""
        low, middle, high = np.percentile(self.c / self.numba, [20, 50, 80])
        times = f"{np.median(self.c):.3f}", f"{np.median(self.numba):.3f}"
        return [*times, f"{middle:.2f}", f"{low:.2f}", f"{high:.2f}"]


def harness(program: Program, compiled: CFunction) -> str:
    """Return a C source that has the kernel, and times it and a function at an address."""
    arrays = [f"arrays[{k}]" for k in range(len(program.buffers))]
    keys = ["keys", "0"] if program.noise else []
    numbers = [f"numbers[{k}]" for k in range(len(program.scalars))]
    kinds = ["intptr_t", *["void *"] * len(arrays), *["intptr_t"] * (3 * program.noise), *["double"] * len(numbers)]
    theirs = ["(intptr_t)n", *arrays, *(["keys[0]", "keys[1]", "0"] if program.noise else []), *numbers]
    assert len(kinds) == len(compiled.arguments)
    fields = ", ".join(f"({'float' if program.dtype == np.float32 else 'double'}){x}" for x in numbers)
    return f"""#define _POSIX_C_SOURCE 199309L
#include <time.h>
{print_export(program, RULE, "fastopt export adam")}
static double now(void) {{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}}
double time_c(long times, size_t n, void **arrays, const uint32_t *keys, const double *numbers) {{
    const {scalars_type(program)} scalars = {{{fields}}};
    const double start = now();
    (void)keys;
    for (long k = 0; k < times; ++k) {entry(program)}(n, {", ".join([*arrays, *keys, "&scalars"])});
    return now() - start;
}}
double time_at(
    void (*kernel)({", ".join(kinds)}), long times, size_t n, void **arrays, const uint32_t *keys, const double *numbers
) {{
    const double start = now();
    (void)keys;
    for (long k = 0; k < times; ++k) kernel({", ".join(theirs)});
    return now() - start;
}}
"""


def measure(storage: str, n: int, compiler: str, rounds: int, folder: Path) -> Timed:
    """Time both kernels of a storage on n parameters."""
    compiled = c_function(RULE, storage)
    program = compiled.program
    path = folder / f"{entry(program)}.c"
    path.write_text(harness(program, compiled), encoding="utf-8")
    command = [compiler, *FLAGS, "-shared", "-fPIC", str(path), "-o", str(path.with_suffix(".so")), "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(path.with_suffix(".so")))
    library.time_c.restype = library.time_at.restype = ctypes.c_double
    start = _arrays(program, n)
    keys, numbers = np.array(noise_keys(1, 3), np.uint32), np.array(host_scalars(program, RULE)(3))
    rest = [ctypes.c_void_p(keys.ctypes.data), ctypes.c_void_p(numbers.ctypes.data)]

    def run(arrays: list[np.ndarray], times: int, *, c: bool) -> float:
        pointers = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
        given: list[Any] = [ctypes.c_long(times), ctypes.c_size_t(n), pointers, *rest]
        return library.time_c(*given) if c else library.time_at(ctypes.c_void_p(compiled.address), *given)

    both = [[a.copy() for a in start] for _ in range(2)]
    once = [run(arrays, 1, c=bool(k)) for k, arrays in enumerate(both)]
    same = all(x.tobytes() == y.tobytes() for x, y in zip(*both, strict=True))
    assert same, f"{program.name}: the bits of C and Numba differ"
    times = max(1, int(MILLISECONDS * 1e-3 / min(once)))
    found = [[run(start, times, c=c) * 1e9 / n / times for c in (True, False)] for _ in range(rounds)]
    return Timed(*np.array(found).T)


def _arrays(program: Program, n: int) -> list[np.ndarray]:
    """Return arrays in the middle of a training: all tiles plain, as nearly all are."""
    rng = np.random.default_rng(0)
    values = {"p": rng.standard_normal(n), "g": rng.standard_normal(n) * 1e-3, "m": rng.standard_normal(n) * 1e-3}
    values["v"] = values["m"] ** 2 + 1e-9
    made: dict[str, np.ndarray] = {}
    for b, form in program.formats.items():
        planes = pack(form, values[b].astype(form.computes), rng.integers(0, 2**32, n, np.uint32))
        made |= dict(zip(form.plane_names(b), planes, strict=True))
    return [np.ascontiguousarray(made[b.name]) for b in program.buffers]


def markdown(path: Path) -> list[str]:
    """Return the table of a file of results: C's time over Numba's, by each compiler."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        ratio = f"{row['C / Numba']} ({row['20th percentile']}–{row['80th percentile']})"
        found.setdefault((row["storage"], row["parameters"]), []).append(ratio)
    versions = (re.findall(r"(gcc|clang) .*?(\d+\.\d+\.\d+)(?: |$)", row["compiler"]) for row in rows)
    names = [" ".join(first) for first in dict.fromkeys(x[0] for x in versions)]
    return [
        f"| storage | parameters | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
        *(f"| `{storage}` | {size} | {' | '.join(cells)} |" for (storage, size), cells in found.items()),
    ]


def main(
    compiler: Annotated[list[str], typer.Option(help="a C compiler; repeat it for several")] = ["gcc", "clang"],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="in which each kernel is timed once")] = 31,
    out: Annotated[Path | None, typer.Option(help="a CSV file to write")] = None,
) -> None:
    """Print the times of both kernels, and their ratios."""
    rows, about = [], [machine.processor(), platform.python_version(), version("numba")]
    for name in compiler:
        named = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
        print(f"{named}: storage, parameters, C ns, Numba ns, C / Numba, 20th, 80th")
        with tempfile.TemporaryDirectory() as folder:
            for size, n in SIZES.items():
                for storage in STORAGES:
                    found = [storage, size, *measure(storage, n, name, rounds, Path(folder)).row]
                    print("  ".join(f"{x:>10}" for x in found), flush=True)
                    rows.append([*found, f"{named} {' '.join(FLAGS)}", *about])
    if out is not None:
        with out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADING)
            writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
