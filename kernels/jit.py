"""Compiling with Numba: modules of one function, compiled once for one signature, their code stored on disk.

A module is text: printed from a Program, or a real file of fastopt's. It defines a function and SIGNATURE, the types
that it is compiled for, so no call ever compiles anything.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba

from fastopt.kernels import cache as files


def load(name: str, text: str) -> Any:
    """Return the function `name` of a module with this text, compiled now or by an earlier process.

    Compiled code that was damaged on disk is compiled again. Where it cannot be written, it lasts as long as the
    process.
    """
    with files.lock:  # two threads, or two programs that print the same text, come for one kernel
        module = files.load(name, text, _folder_name(_imported(text)))
        kernel = getattr(module, name)
        if not kernel.signatures:
            kernel = _compile(kernel, module.SIGNATURE, Path(str(module.__file__)))
            kernel.disable_compile()
            setattr(module, name, kernel)
    return kernel


def load_module(name: str) -> Any:
    """Return the compiled function of a module of fastopt's, which has the module's last name."""
    return load(name.rpartition(".")[2], _source(name))


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None
    return spec.loader.get_source(module)  # type: ignore[union-attr]  # also from a zip file


@cache
def entry_point(kernel: Any) -> Any:
    """Return the C function behind a loaded kernel: the dispatcher checks every argument's type, 0.12 µs a call."""
    (only,) = kernel.overloads.values()
    return only.entry_point


def _imported(text: str) -> tuple[str, ...]:
    """Return the modules of fastopt that a module imports intrinsics from: their code becomes part of its own."""
    return tuple(sorted(re.findall(r"^from (fastopt\.[\w.]+) import", text, re.MULTILINE)))


@lru_cache(maxsize=16)
def _folder_name(modules: tuple[str, ...]) -> str:
    """Name the folder of compiled modules: whatever changes the code they become, besides their own text."""
    sources = "".join(map(_source, modules))
    return f"cpu-numba{numba.__version__}-{hashlib.sha256(sources.encode()).hexdigest()[:8]}"


def cache_folder() -> Path:
    """Return the folder in which compiled CPU kernels are stored."""
    return files.folder(_folder_name(("fastopt.kernels.cpu.intrinsics",)))


def _compile(kernel: Any, signature: Any, path: Path) -> Any:
    try:
        try:
            kernel.compile(signature)
        except Exception as damage:  # whatever unpickling damaged bytes raises
            if not files.discard(Path(kernel.stats.cache_path), path.stem):
                raise
            kernel.compile(signature)
            files.warn_damaged(path, damage)
    except OSError as error:
        files.warn_unwritable(path, error)
        kernel = numba.njit(nogil=kernel.targetoptions.get("nogil", False), error_model="numpy")(kernel.py_func)
        kernel.compile(signature)
    return kernel
