"""The state as torch shows it: dicts that note changes, and decode values that are stored in other words.

So a step need not compare every entry, and whoever reads, saves, moves or replaces state finds torch's names and values
in every storage.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, NamedTuple

from fastopt.arrays.torch import same_bits, separate

_NOTHING: Any = object()


class Encoded(NamedTuple):
    """What stands in a dict for values that are stored in other words."""

    owner: object  # tells whose they are
    decode: Callable[[], Any]
    write: Callable[[Any], None]
    live: bool = False  # whether it may change between two steps: a CUDA graph steps it


class Changes:
    """What has happened to the dicts that share it since the last step."""

    def __init__(self, lock: Any):
        self.lock = lock  # the step's: what is decoded while a step runs would be half of it
        self.seen = False  # whether an entry was assigned or removed
        self.decoded: list[tuple[ParameterState, str]] = []  # the values that were read, and may have been written to


class ObservedDict(dict):
    """A dict that notes when an entry is assigned or removed. Copied and pickled it is a plain dict."""

    def __init__(self, changes: Changes, entries: Any = ()):
        super().__init__(entries)
        self.changes = changes

    def __setitem__(self, key: Any, value: Any) -> None:
        self.changes.seen = True
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.changes.seen = True
        super().__delitem__(key)

    def clear(self) -> None:
        """Remove all entries."""
        for key in list(self):
            del self[key]

    def pop(self, key: Any, default: Any = _NOTHING) -> Any:
        """Remove an entry and return it."""
        if key not in self and default is not _NOTHING:
            return default
        if key not in self:
            raise KeyError(key)
        value = self[key]
        del self[key]
        return value

    def popitem(self) -> tuple:
        """Remove the last entry and return it."""
        if not self:
            raise KeyError("the dict is empty")
        key = next(reversed(self))
        return key, self.pop(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return an entry, which is the default if there was none."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *others: Any, **more: Any) -> None:
        """Assign entries."""
        for key, value in dict(*others, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def plain(self) -> dict:
        """Return a plain dict."""
        return dict(self)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return dict, (self.plain(),)

    def __copy__(self) -> dict:
        return self.plain()

    copy = __copy__


class ParameterState(ObservedDict):
    """The state of one parameter.

    A value that is stored in other words is decoded when it is read, once between two steps; if it was written to in
    place, the next step stores it. One that a CUDA graph may step unseen is decoded at each reading, and what was
    written to is what has another version than it had.
    """

    def __init__(self, changes: Changes, entries: Any = ()):
        super().__init__(changes, entries)
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if type(value) is not Encoded:
            return value
        with self.changes.lock:
            if key not in self._decoded or not self._is_kept(key, value):
                if key not in self._decoded:
                    self.changes.decoded.append((self, key))
                found = value.decode()
                self._decoded[key] = found, found._version
            return self._decoded[key][0]

    def _is_kept(self, key: Any, encoded: Encoded) -> bool:
        """Whether what was decoded still stands for the value: as nothing steps it unseen, or it was written to."""
        found, version = self._decoded[key]
        return not encoded.live or found._version != version

    def is_read_only(self, key: Any) -> bool:
        """Whether a value was decoded that a graph may step, and has not been written to."""
        encoded = self.stored(key)
        return type(encoded) is Encoded and key in self._decoded and not self._is_kept(key, encoded)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._decoded.pop(key, None)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self._decoded.pop(key, None)
        super().__delitem__(key)

    def __iter__(self) -> Iterator:  # without which dict(self) would not use __getitem__
        return super().__iter__()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return an entry, or the default."""
        try:
            return self[key]
        except KeyError:
            return default

    def items(self) -> Any:
        """Return a view of names and values."""
        return ItemsView(self)

    def values(self) -> Any:
        """Return a view of the values."""
        return ValuesView(self)

    def __or__(self, other: Any) -> Any:
        return self.plain() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.plain()

    def __repr__(self) -> str:
        return repr(self.plain())

    def stored(self, key: str) -> Any:
        """Return what stands in the dict, without decoding it; None if nothing does."""
        return dict.get(self, key)

    def show(self, key: str, value: Any) -> None:
        """Assign an entry of fastopt's own, which is no change."""
        dict.__setitem__(self, key, value)

    def store_changed(self, key: str) -> None:
        """Store a value that was decoded if it has been written to, and forget it."""
        encoded = self.stored(key)
        if self.is_read_only(key):
            del self._decoded[key]
            return
        value, _ = self._decoded.pop(key, (None, 0))
        if value is not None and type(encoded) is Encoded and not same_bits(value, encoded.decode()):
            encoded.write(value)

    def plain(self) -> dict:
        """Return a plain dict of values; of scalars copies, because those of a bucket are elements of one tensor."""
        found = {}
        with self.changes.lock:
            for key, value in super().items():
                kept = key in self._decoded and (type(value) is not Encoded or self._is_kept(key, value))
                x = self._decoded[key][0] if kept else value
                found[key] = separate(x.decode() if type(x) is Encoded else x)
        return found


class ObservedState(ObservedDict):
    """The state of an optimizer: parameter → its observed dict, an empty one where there is none yet."""

    def __missing__(self, key: Any) -> ParameterState:
        made = ParameterState(self.changes)
        dict.__setitem__(self, key, made)
        return made

    def observe(self, key: Any) -> ParameterState:
        """Return an entry as a dict that is observed."""
        entries = self[key]
        if not isinstance(entries, ParameterState) or entries.changes is not self.changes:
            raw = isinstance(entries, ParameterState)
            entries = ParameterState(self.changes, dict.items(entries) if raw else entries)
            dict.__setitem__(self, key, entries)
        return entries

    def store_changed(self) -> None:
        """Store what was decoded since the last step and written to."""
        read, self.changes.decoded = self.changes.decoded, []
        for entries, key in read:
            entries.store_changed(key)


class HostState(MutableMapping):
    """State that lies by copies on the CPU, by the parameters on the device; `refresh` makes a copy what these are."""

    def __init__(self, state: Any, hosts: Mapping[Any, Any], refresh: Callable[[Any], None]):
        self._state, self._hosts, self._refresh = state, hosts, refresh

    def __getitem__(self, p: Any) -> Any:
        self._refresh(p)
        return self._state[self._hosts.get(p, p)]

    def __setitem__(self, p: Any, entries: Any) -> None:
        self._state[self._hosts.get(p, p)] = entries

    def __delitem__(self, p: Any) -> None:
        del self._state[self._hosts.get(p, p)]

    def __contains__(self, p: Any) -> bool:  # without it one that is missing would be made
        return self._hosts.get(p, p) in self._state

    def __iter__(self) -> Iterator:
        device = {host: p for p, host in self._hosts.items()}
        return (device.get(key, key) for key in list(self._state))

    def __len__(self) -> int:
        return len(self._state)
