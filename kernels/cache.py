"""Where compiled kernels are stored: files that processes share, in a folder that no other user can write to.

What is read from there runs as code. So the folder is the user's own, and each file begins with a digest of what
follows: what does not match was damaged, and is made anew. It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging  # noqa: F401 — compilers log, and whose fork handler is registered first takes its lock last
import os
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from fastopt.errors import CacheWarning

lock = threading.RLock()
"""Held while a module is made or compiled. A fork waits for it: no child is born inside the compiler.
Handlers of a fork run in reverse order, so this lock is waited for before logging's is taken, which compilers need."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

_DIGEST = hashlib.sha256().digest_size
_UNSTORED = "compiled kernels cannot be stored on disk; every new process will compile them again."


def preferred_folder() -> Path | None:
    """Return the user's cache folder for fastopt, by the platform's custom; None for a user without a home folder."""
    expanded = os.path.expanduser("~")
    home = Path(expanded) if os.path.isabs(expanded) else None
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or (home and home / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = home and home / "Library" / "Caches"
    else:
        named = os.environ.get("XDG_CACHE_HOME", "")  # "relative paths … should be ignored" (its specification)
        parent = named if os.path.isabs(named) else home and home / ".cache"
    return Path(parent) / "fastopt" if parent else None


@lru_cache(maxsize=8)
def folder(kind: str) -> Path | None:
    """Return the folder for one kind of code (it names the compiler and its version).

    Where there is none that is the user's own, warns with a CacheWarning and returns None.
    """
    path = preferred_folder()
    if path is None:
        _warn(_UNSTORED, "the user has no home folder", "set XDG_CACHE_HOME to a folder of your own")
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / kind).mkdir(mode=0o700, exist_ok=True)
        reason = untrusted(path / kind)
    except OSError as error:
        warn_unwritable(path / kind, error)
        return None
    if reason:
        do = f"remove {path} or make it your own (chmod -R go-w), or set XDG_CACHE_HOME to a folder of your own"
        _warn(f"stored kernels are not used: {reason}.", str(path / kind), do)
        return None
    return path / kind


def untrusted(path: Path) -> str | None:
    """Say why others could have written to a folder of the cache, or put another in its place; None if they could not.

    The user and the system's administrator are trusted.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows: the folder lies in the user's profile
    trusted = (0, os.geteuid())
    for part in _leading_to(path):
        found = part.lstat()
        own = part in (path, path.parent)
        if found.st_uid not in trusted and (own or stat.S_ISLNK(found.st_mode)):
            return f"{part} belongs to another user"
        if stat.S_ISLNK(found.st_mode):
            continue
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH if own else stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX:
            return f"{part} can be written by other users"
    return None


def _leading_to(path: Path) -> Iterator[Path]:
    """List a folder and all above it, as they are named and, where a link leads to it, as they are."""
    yield from (path, *path.parents)
    if path.resolve() != path:
        yield from (path.resolve(), *path.resolve().parents)


def warn_unwritable(path: Path, error: BaseException) -> None:
    """Warn that compiled kernels will not outlive this process, and say why."""
    _warn(_UNSTORED, f"{path}: {error}", "make that folder writable, or set XDG_CACHE_HOME to one that is")


def warn_damaged(path: Path, what: str) -> None:
    """Warn that a stored kernel was damaged, and is made anew."""
    do = "check the disk if this happens again"
    _warn("a compiled kernel on disk was damaged; it is compiled again and replaced.", f"{path}: {what}", do)


def _warn(what: str, got: str, do: str) -> None:
    warnings.warn(CacheWarning(what, got=got, do=do, where="fastopt.kernels.cache"), stacklevel=3)


def short(name: str) -> str:
    """Cut a long name and add a hash of it, for file names."""
    fits = len(name) <= _LONGEST
    return name if fits else f"{name[: _LONGEST - 13]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"


_LONGEST = 80  # with a digest far below the 255 bytes that a file's name may have


def read(path: Path) -> bytes | None:
    """Return what is stored in a file; None if nothing is, or not what was written, which is a warning."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # not damage: too many open files, for example
        _warn("a stored kernel cannot be read; it is compiled again.", f"{path}: {error}", "see what the system says")
        return None
    content = data[_DIGEST:]
    if hashlib.sha256(content).digest() == data[:_DIGEST]:
        return content
    warn_damaged(path, "its digest is not that of its content")
    return None


def write(path: Path, content: bytes) -> None:
    """Store in a file, whole or not at all; where that is impossible, warn."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        warn_unwritable(path.parent, error)
