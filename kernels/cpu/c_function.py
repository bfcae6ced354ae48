"""The CPU kernel of a rule as a C function at an address: for calls from C, C++ or another language in this process."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from fastopt.errors import RuleError
from fastopt.kernels.cache import short
from fastopt.kernels.compiler.program import Program
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning
from fastopt.kernels.cpu.launch import compiled
from fastopt.kernels.cpu.modules import function_name
from fastopt.kernels.jit import load_c_function


class CFunction(NamedTuple):
    """A compiled kernel with C's calling convention: a step of one tensor, in place, in the calling thread.

    `arguments` are the names and C types of its arguments; it returns nothing. Pointers are as long as `intptr_t`.
    """

    address: int
    name: str
    arguments: tuple[tuple[str, str], ...]
    program: Program
    keeps: Any  # what owns the machine code, which is freed with the last of such tuples

    @property
    def declaration(self) -> str:
        """The function as a declaration in C."""
        spaced = [f"{kind}{'' if kind.endswith('*') else ' '}{name}" for name, kind in self.arguments]
        return f"void {self.name}({', '.join(spaced)});"


def c_function(rule: Any, storage: Any = "f32") -> CFunction:
    """Return the compiled kernel of a rule as a function that C calls by its address, without Python.

    The arguments are the number of elements, the arrays of `program.buffers`, for rules and storages with noise its two
    keys and the offset, and the scalars of the step in float64: `program.scalars`, from the rule's `scalars(t)`.
    It neither needs nor takes the GIL, allocates nothing and raises nothing. Threads may call it at once on ranges that
    begin at a multiple of 256 elements and do not overlap; it starts no threads of its own. The floating-point mode is
    set for the step and restored. The code lives as long as what is returned.

    Args:
        rule: any rule that takes no totals and calls no functions of matrices.
        storage: as for `fastopt.update`.

    Raises:
        RuleError: this is no rule; or the rule takes totals or calls functions of matrices, so that a step is several
            functions.
        SettingError: there is no such storage.

    >>> import ctypes, numpy as np, fastopt
    >>> from fastopt.kernels.cpu.c_function import c_function
    >>> found = c_function(fastopt.SGD(lr=0.5))
    >>> found.declaration
    'void sgd_pf32_gf32(intptr_t n, float *p, const float *g, double lr, double decay);'
    >>> types = {"intptr_t": ctypes.c_ssize_t, "double": ctypes.c_double}
    >>> call = ctypes.CFUNCTYPE(None, *(types.get(kind, ctypes.c_void_p) for _, kind in found.arguments))(found.address)
    >>> p, g = np.ones(3, np.float32), np.ones(3, np.float32)
    >>> call(p.size, p.ctypes.data, g.ctypes.data, 0.5, 0.0)
    >>> p
    array([0.5, 0.5, 0.5], dtype=float32)

    """
    program = trace(rule, storage)
    if program.phases:
        raise RuleError(
            "the step of this rule is no single function, because it takes totals, or calls functions of matrices.",
            got=program.rule,
            do="call fastopt.update, or export the rule as C: fastopt export",
            where="c_function",
        )
    return _made(program)


_TYPES = {"float32": "float", "float64": "double", "uint32": "uint32_t", "uint16": "uint16_t", "uint8": "uint8_t"}


@lru_cache(maxsize=128)
def _made(program: Program) -> CFunction:
    name = short(f"{function_name(program)}_c")
    compiled_one = load_c_function(name, _print(program, name))
    buffers = [
        (b.name.replace(".", "_"), f"{'' if b.written else 'const '}{_TYPES[b.dtype.name]} *") for b in program.buffers
    ]
    noise = [(x, "intptr_t") for x in ("key0", "key1", "offset")] if program.noise else []
    arguments = (("n", "intptr_t"), *buffers, *noise, *((s, "double") for s in program.scalars))
    return CFunction(compiled_one.address, program.name, arguments, program, compiled_one)


def _print(program: Program, name: str) -> str:
    """Print the module of a function that calls the kernel on all elements, in this thread."""
    kernel, numbers = function_name(program), len(program.buffers) + 3 * program.noise
    addresses, scalars = [f"a{k}" for k in range(numbers)], [f"s{k}" for k in range(len(program.scalars))]
    types = ", ".join(["intp"] * (1 + numbers) + ["float64"] * len(scalars))
    given = ", ".join([*addresses, *scalars])
    large = f"n > {tuning.STRIPS_FROM}" if tuning.prefetches(1 << 62, compressed=program.compressed) else "False"
    return "\n".join(
        [
            f'"""{program.name} with the calling convention of C. Printed by fastopt; do not edit."""',
            "",
            "from numba import float64, intp, types",
            "",
            f"from {compiled(program).py_func.__module__} import {kernel}",
            "",
            f"SIGNATURE = types.void({types})",
            "",
            "",
            f"def {name}({', '.join(['n', given])}):",
            f"    {kernel}(0, n, n, intp({large}), {given})",
            "",
        ]
    )
