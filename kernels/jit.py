"""Compiling with Numba: modules of one function, compiled once for one signature, their code stored on disk.

A module is text: printed from a Program, or a real file of fastopt's. It defines a function and SIGNATURE, the types
that it is compiled for, so no call ever compiles anything.
"""

from __future__ import annotations

import hashlib
import linecache
import pickle
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from fastopt.errors import BackendError
from fastopt.kernels import cache as files


def load(name: str, text: str) -> Any:
    """Return the function `name` of a module with this text, compiled now or by an earlier process.

    Raises:
        BackendError: Numba is told to compile nothing.

    """
    _require_jit()
    with files.lock:  # two threads, or two programs that print the same text, come for one kernel
        module = _module(f"fastopt_printed_{files.short(name)}_{_hash(text)}", text)
        kernel = getattr(module, name)
        if not kernel.signatures:
            kernel._cache = StoredCode(
                f"{files.short(name)}_{_hash(text)}", _folder_name("from fastopt.kernels.cpu." in text)
            )
            kernel.compile(module.SIGNATURE)
            kernel.disable_compile()
    return kernel


def load_c_function(name: str, text: str) -> Any:
    """Return the function `name` of a module with this text, compiled with the calling convention of C.

    It has an `address`, and owns its code.

    Raises:
        BackendError: Numba is told to compile nothing.

    """
    _require_jit()
    with files.lock:
        module = _module(f"fastopt_printed_{files.short(name)}_{_hash(text)}", text)
        return numba.cfunc(module.SIGNATURE, error_model="numpy")(getattr(module, name))


def load_module(name: str) -> Any:
    """Return the compiled function of a module of fastopt's, which has the module's last name."""
    return load(name.rpartition(".")[2], _source(name))


def _require_jit() -> None:
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        what = "NUMBA_DISABLE_JIT is set, so Numba compiles nothing."
        raise BackendError(what, do='unset it, or choose backend="reference"')


class StoredCode:
    """The code of one function in one file, in place of Numba's own cache of it.

    Numba's consists of a module's file, Python's code for it, an index and a file of machine code, of which none is
    verified; and it needs a file, which a module in a zip file has not.
    """

    def __init__(self, stem: str, kind: str):
        self._stem, self._kind = stem, kind
        self.path: Path | None = None
        self.cache_path = None  # for Numba's statistics

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the function compiled for a signature if it is stored, as Numba asks for it."""
        target.refresh()
        folder = files.folder(self._kind)
        if folder is None:
            return None
        machine = _hash(repr((signature, target.codegen().magic_tuple(), sys.implementation.cache_tag)))
        self.path = folder / f"{self._stem}-{machine}.code"
        data = files.read(self.path)
        return None if data is None else CompileResult._rebuild(target, *pickle.loads(data))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Store what was compiled, as Numba asks for it."""
        if self.path is not None:
            files.write(self.path, dumps(result._reduce()))


def _module(qualified: str, text: str) -> ModuleType:
    """Return the module with this text; it has no file, but lines for tracebacks and debuggers."""
    if qualified not in sys.modules:
        module = ModuleType(qualified)
        module.__file__ = f"<{qualified}>"
        linecache.cache[module.__file__] = len(text), None, text.splitlines(keepends=True), module.__file__
        sys.modules[qualified] = module
        try:
            exec(compile(text, module.__file__, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[qualified]
            raise
    return sys.modules[qualified]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    return spec.loader.get_source(module)  # type: ignore[union-attr]  # also from a zip file


@cache
def entry_point(kernel: Any) -> Any:
    """Return the C function behind a loaded kernel: the dispatcher checks every argument's type, 0.12 µs a call."""
    (only,) = kernel.overloads.values()
    return only.entry_point


@cache
def _folder_name(intrinsics: bool) -> str:
    """Name the folder of compiled modules: by whatever changes the code they become, besides their own text."""
    sources = "".join(
        _source(f"fastopt.kernels.cpu.{name}") for name in ("apply", "jobs", "memory", "values") if intrinsics
    )
    return f"numba{numba.__version__}-{_hash(sources)[:8]}"


def cache_folder() -> Path | None:
    """Return the folder in which compiled CPU kernels are stored, if there is one."""
    return files.folder(_folder_name(True))
