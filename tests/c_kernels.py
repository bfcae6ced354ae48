"""Compiles exported C sources with the compilers of this machine, and calls them."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.kernels.c.printer import entry, print_export
from fastopt.kernels.compiler.program import Program

COMPILERS = {name: shutil.which(name) for name in ("gcc", "clang", "g++", "clang++")}
# In the GNU dialects, GCC contracts multiplications and additions unless it is told not to; in ISO C it does not.
STRICT = ["-std=gnu99", "-Wall", "-Wextra", "-Wshadow", "-pedantic", "-Werror"]
STRICT_CXX = ["-x", "c++", "-std=gnu++11", *STRICT[1:]]
HAS_FMA = platform.machine().lower() in ("x86_64", "amd64") and "fma" in (
    Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
)


def compile_c(compiler: str, source: Path, to: Path, *flags: str) -> None:
    """Compile a source without warnings to what `flags` say, and fail with the compiler's words."""
    strict = STRICT_CXX if compiler.endswith("++") else STRICT
    path = COMPILERS[compiler]
    assert path is not None
    command = [path, *strict, *flags, str(source), "-o", str(to), *([] if "-c" in flags else ["-lm"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"


class CKernels:
    """The exported sources of some programs, compiled into one shared library."""

    def __init__(self, rules: Iterable[tuple[Program, Any]], folder: Path, compiler: str = "gcc", *flags: str):
        text = {program.name: print_export(program, rule, "fastopt export") for program, rule in rules}
        source = folder / f"kernels{len(list(folder.iterdir()))}.c"
        source.write_text("\n".join(text.values()), encoding="utf-8")
        compile_c(compiler, source, source.with_suffix(".so"), "-shared", "-fPIC", *(flags or ("-O2",)))
        self.library = ctypes.CDLL(str(source.with_suffix(".so")))

    def step(self, program: Program, arrays: Sequence[np.ndarray], noise: tuple, scalars: tuple) -> None:
        """Take one step, as `values.step` does: `noise` is () or (key 0, key 1, offset)."""
        assert not program.phases
        given: list[Any] = [ctypes.c_size_t(arrays[0].size), *(ctypes.c_void_p(a.ctypes.data) for a in arrays)]
        keys, numbers = np.array(noise[:2], np.uint32), np.array(scalars, program.dtype)
        if program.noise:
            given += [ctypes.c_void_p(keys.ctypes.data), ctypes.c_uint64(noise[2])]
        if program.scalars:
            given.append(ctypes.c_void_p(numbers.ctypes.data))
        getattr(self.library, entry(program))(*given)

    def step_all(
        self, program: Program, tensors: Sequence[Sequence[np.ndarray]], noise: tuple, scalars: tuple
    ) -> tuple[bool, np.ndarray]:
        """Take one step of a program in phases on tensors; return whether it was taken, and each tensor's totals.

        `noise` is () or (key 0, key 1, the offset of each tensor).
        """
        most = max(len(program.known_after(k)) for k in range(len(program.phases) - 1))
        fields = ["n", *(f"b{k}" for k in range(len(program.buffers))), *(["offset"] if program.noise else []), "work"]
        kind = np.dtype([(f, np.uint64) for f in fields] + [("totals", np.float64, len(program.totals))], align=True)
        table = np.zeros(len(tensors), kind)
        work = [np.full(most * -(-arrays[0].size // 256), np.nan) for arrays in tensors]
        for k, (arrays, scratch) in enumerate(zip(tensors, work, strict=True)):
            table[k]["n"], table[k]["work"] = arrays[0].size, scratch.ctypes.data
            for b, array in enumerate(arrays):
                table[k][f"b{b}"] = array.ctypes.data
            if program.noise:
                table[k]["offset"] = noise[2][k]
        keys, numbers = np.array(noise[:2], np.uint32), np.array(scalars, program.dtype)
        given: list[Any] = [ctypes.c_size_t(len(tensors)), ctypes.c_void_p(table.ctypes.data)]
        given += [ctypes.c_void_p(keys.ctypes.data)] if program.noise else []
        given += [ctypes.c_void_p(numbers.ctypes.data)] if program.scalars else []
        run = getattr(self.library, entry(program))
        run.restype = ctypes.c_bool
        return run(*given), table["totals"]
