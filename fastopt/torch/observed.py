"""Dicts that tell when somebody has changed them, so that a step need not compare every entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Changes:
    """Whether any of the dicts that share it has changed."""

    seen = False


class ObservedDict(dict):
    """A dict that notes when an entry is assigned or removed. Copied and pickled it is a plain dict."""

    def __init__(self, changes: Changes, entries: Any = ()):
        super().__init__(entries)
        self.changes = changes

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return dict, (dict(self),)

    __copy__ = dict.copy


class ObservedState(ObservedDict):
    """The state of an optimizer: parameter → observed dict of its state, an empty one where there is none yet."""

    def __missing__(self, key: Any) -> ObservedDict:
        made = ObservedDict(self.changes)
        dict.__setitem__(self, key, made)
        return made

    def observe(self, key: Any) -> ObservedDict:
        """Return an entry as a dict that is observed."""
        entries = self[key]
        if not isinstance(entries, ObservedDict) or entries.changes is not self.changes:
            entries = ObservedDict(self.changes, entries)
            dict.__setitem__(self, key, entries)
        return entries


def _noting(name: str) -> Callable:
    method = getattr(dict, name)

    def call(self: ObservedDict, *args: Any, **kwargs: Any) -> Any:
        self.changes.seen = True
        return method(self, *args, **kwargs)

    call.__name__ = name
    return call


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(ObservedDict, _name, _noting(_name))
