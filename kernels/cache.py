"""Where generated modules and their compiled code are stored: content-addressed files that processes share.

A module is written once under a name made of its kernel's name and a hash of its text, by write-then-rename and with a
fixed time stamp (Numba's index compares it), so that processes that start together agree whoever is last.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import logging  # noqa: F401 — compilers log, and whose fork handler is registered first takes its lock last
import os
import shutil
import sys
import tempfile
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from fastopt.errors import CacheWarning

_STAMP = 1_000_000_000

lock = threading.RLock()
"""Held while a module is written, imported or compiled. A fork waits for it: no child is born inside the compiler.
Handlers of a fork run in reverse order, so this lock is waited for before logging's is taken, which compilers need."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def preferred_folder() -> Path:
    """Return the user's cache folder for fastopt, by the platform's custom; it may not exist or not be writable."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        parent = home / "Library" / "Caches"
    elif sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return parent / "fastopt"


@lru_cache(maxsize=8)
def folder(kind: str) -> Path:
    """Return a writable folder for one kind of module (it names the compiler and its version).

    Where the user's cache folder cannot be written, warns with a CacheWarning and returns a temporary folder that lasts
    as long as the process.
    """
    wanted = preferred_folder() / kind
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=wanted, prefix="probe-"):
            pass
        return wanted
    except OSError as error:
        warn_unwritable(wanted, error)
        return temporary_folder()


def warn_unwritable(path: Path, error: BaseException) -> None:
    """Warn that compiled kernels will not outlive this process, and say why."""
    what = "compiled kernels cannot be stored on disk; every new process will compile them again."
    _warn(what, f"{path}: {error}", "make that folder writable, or set XDG_CACHE_HOME to one that is")


def warn_damaged(path: Path, error: BaseException) -> None:
    """Warn that a compiled kernel on disk was damaged, and that it is whole again."""
    what = "a compiled kernel on disk could not be read; it has been compiled again and replaced."
    _warn(what, f"{path}: {type(error).__name__}: {error}", "check the disk if this happens again")


def _warn(what: str, got: str, do: str) -> None:
    warnings.warn(CacheWarning(what, got=got, do=do, where="fastopt.kernels.cache"), stacklevel=3)


@lru_cache(maxsize=1)
def temporary_folder() -> Path:
    """Make a folder that is removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="fastopt-"))
    owner = os.getpid()  # a forked child must not remove its parent's folder
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == owner else None)
    return path


def short(name: str) -> str:
    """Cut a long name and add a hash of it: Numba's file names hold the module's and the function's name."""
    fits = len(name) <= _LONGEST
    return name if fits else f"{name[: _LONGEST - 13]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


_LONGEST = 80  # twice this, a hash and Numba's suffixes are below the 255 bytes that a file's name may have


def discard(folder: Path, stem: str) -> bool:
    """Delete the files in which Numba stores a module's code; return whether there were any."""
    found = [path for pattern in ("nbi", "nbc") for path in folder.glob(f"{stem}.*.{pattern}")]
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def load(name: str, text: str, kind: str) -> ModuleType:
    """Import the module with this text from its file, writing the file first where there is none."""
    full = f"{short(name)}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    qualified = f"fastopt_printed_{full}"
    with lock:
        if qualified in sys.modules:
            return sys.modules[qualified]
        return _import(qualified, store(folder(kind) / f"{full}.py", text.encode()))


def store(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all, and return its path: in a temporary folder where this one cannot be written."""
    try:
        _write(path, data)
    except OSError as error:
        warn_unwritable(path, error)
        path = temporary_folder() / path.name
        _write(path, data)
    return path


def _write(path: Path, data: bytes) -> None:
    try:
        if path.read_bytes() == data:
            return
    except FileNotFoundError:
        pass
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.utime(temporary, (_STAMP, _STAMP))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _import(qualified: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(qualified, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[qualified]
        raise
    return module
