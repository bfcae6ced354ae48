"""Every error fastopt raises: what is wrong, what arrived, what was expected and what to do about it, as fields.

Errors are raised before any buffer is written: after one, parameters, state and the step count are as they were. Code
below the surface raises them without `where`; `raised_by` adds the name of the public call at the boundary.

This module imports nothing of fastopt, so every other module may import it.
"""

from __future__ import annotations

from contextlib import ContextDecorator


class Explained(Exception):  # noqa: N818 — what it is to those below, which are errors
    """A message in fields: `what` is wrong, what was `got`, what was `expected`, what to `do`, `where` it happened.

    >>> print(SettingError("t counts steps from 1.", got=0, expected="an integer ≥ 1", do="pass t=1", where="update"))
    update: t counts steps from 1.
      got       0
      expected  an integer ≥ 1
      do        pass t=1
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        do: str | None = None,
        where: str | None = None,
    ):
        super().__init__(what)
        self.what, self.do, self.where = what, do, where
        self.got = None if got is None else str(got)
        self.expected = None if expected is None else str(expected)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        fields = (("got", self.got), ("expected", self.expected), ("do", self.do))
        lines += [f"  {label:<8}  {text}" for label, text in fields if text is not None]
        return "\n".join(lines)


class FastoptError(Explained):
    """The common parent: `except fastopt.FastoptError` catches whatever fastopt raises on purpose."""


class LayoutError(FastoptError, ValueError):
    """A buffer has the wrong shape, dtype, order, device or name, is read-only, or overlaps another."""


class SettingError(FastoptError, ValueError):
    """A setting of a rule, a schedule or a call is out of its range, not finite or not of its type."""


class RuleError(FastoptError, TypeError):
    """A rule cannot be traced: it branches on a value, uses an unknown function or returns the wrong things."""


class BackendError(FastoptError, RuntimeError):
    """The requested backend does not exist, is not installed, or cannot reach the arrays' memory."""


class CheckpointError(FastoptError, OSError):
    """A checkpoint on disk cannot be written or read, or is not what was written."""


class CacheWarning(Explained, UserWarning):
    """Compiled kernels cannot be stored on disk, or one was damaged there: everything works, but compiles again."""


class raised_by(ContextDecorator):  # noqa: N801 — a decorator, or a context as contextlib's are
    """Name the public call in the fastopt errors that leave a function or a `with` block, unless one is named already.

    >>> @raised_by("update")
    ... def update(t):
    ...     raise SettingError("t counts steps from 1.", got=t)
    >>> update(0)
    Traceback (most recent call last):
    fastopt.errors.SettingError: update: t counts steps from 1.
      got       0
    """

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> raised_by:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, FastoptError) and error.where is None:
            error.where = self.where


def suggest(word: str, known: list[str]) -> str:
    """Return what to do about an unknown name: take the close match if there is one, otherwise one of all known."""
    from difflib import get_close_matches  # 2 ms that `import fastopt` need not take

    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(map(repr, known)) or '(none)'}"
