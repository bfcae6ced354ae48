"""Dicts that say when somebody has changed them, so that a step need not look at every entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Flag:
    """Whether any of the dicts that share it was changed."""

    raised = False


class Watched(dict):
    """A dict that raises its flag when an entry is assigned or removed. Copied and pickled it is a plain dict."""

    def __init__(self, flag: Flag, entries: Any = ()):
        super().__init__(entries)
        self.flag = flag

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return dict, (dict(self),)

    __copy__ = dict.copy


class Entries(Watched):
    """The state of an optimizer: parameter → watched dict of its state, an empty one for who has none yet."""

    def __missing__(self, key: Any) -> Watched:
        made = Watched(self.flag)
        dict.__setitem__(self, key, made)
        return made


def _raising(name: str) -> Callable:
    method = getattr(dict, name)

    def call(self: Watched, *given: Any, **named: Any) -> Any:
        self.flag.raised = True
        return method(self, *given, **named)

    call.__name__ = name
    return call


for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update"):
    setattr(Watched, _name, _raising(_name))
