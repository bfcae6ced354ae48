"""Every error fastopt raises, and the one function that words them.

An error says where it happened, what is wrong, what arrived, what was expected and what to do about it. It is raised
before any buffer is written: after an error, parameters, state and the step count are as they were.

This module imports nothing, so every other module may import it.
"""

from __future__ import annotations


class FastoptError(Exception):
    """The common parent: `except fastopt.FastoptError` catches whatever fastopt raises on purpose."""


class LayoutError(FastoptError, ValueError):
    """A buffer has the wrong shape, dtype, order, place or name, is read-only, or overlaps another."""


class SettingError(FastoptError, ValueError):
    """A setting of a rule, a schedule or a call is out of its range, not finite or not of its type."""


class RuleError(FastoptError, TypeError):
    """A rule cannot be traced: it branches on a value, uses an unknown function or returns the wrong things."""


class BackendError(FastoptError, RuntimeError):
    """The requested backend does not exist, is not installed, or does not fit where the arrays live."""


class CacheWarning(UserWarning):
    """Compiled kernels cannot be kept on disk, or one was damaged there: everything works, but it is compiled again."""


def explain(where: str, what: str, *, got: object = None, expected: object = None, do: str | None = None) -> str:
    """Word an error: one line saying where and what, then what was got, what was expected and what to do.

    >>> print(explain("update", "t counts steps from 1.", got=0, expected="an integer ≥ 1", do="pass t=1 first"))
    update: t counts steps from 1.
      got       0
      expected  an integer ≥ 1
      do        pass t=1 first
    """
    lines = [f"{where}: {what}"]
    lines += [
        f"  {label:<8}  {text}"
        for label, text in (("got", got), ("expected", expected), ("do", do))
        if text is not None
    ]
    return "\n".join(lines)


def suggest(word: str, known: list[str]) -> str:
    """What to do about an unknown name: the close match if there is one, otherwise all that are known."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(map(repr, known)) or '(none)'}"
