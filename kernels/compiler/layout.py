"""The layout of a rule's memory: the format of each of its buffers, from what `storage=` means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastopt.errors import SettingError, suggest
from fastopt.kernels.formats import FULL, PRESETS, STORAGES
from fastopt.kernels.rules.rule import Rule, named_state, require_rule, signature

_KINDS = {"p": "the parameter", "g": "the gradient, which others write", "state": "a state buffer"}


def layout(rule: Rule, storage: Any) -> dict[str, str]:
    """Return the name of the format of each buffer of `rule`, the optional ones too, in the rule's order.

    Args:
        rule: any rule.
        storage: the name of a preset; float32 or float64, for buffers that are all of that type; or a mapping from the
            name of a buffer to the name of its format. Buffers that are not named are stored in the computing
            precision, which the format of p decides.

    Raises:
        RuleError: this is no rule.
        SettingError: there is no such preset, buffer or format, or the format does not hold such a buffer.

    """
    require_rule(rule)
    names = signature(rule).buffers
    if isinstance(storage, str):
        return _of_preset(rule, storage, names)
    if isinstance(storage, Mapping):
        return _of_formats(rule, storage, names)
    if isinstance(storage, type | np.dtype) and np.dtype(storage) in FULL:
        return dict.fromkeys(names, FULL[np.dtype(storage)])
    expected = f'{", ".join(PRESETS)}; or for example {{"p": "split", "g": "bf16", "m": "f8", "v": "uf8"}}'
    raise SettingError("a storage is a name or a dict.", got=repr(storage)[:60], expected=expected)


def _of_preset(rule: Rule, name: str, buffers: tuple[str, ...]) -> dict[str, str]:
    if name not in PRESETS:
        do = f"it is a format of single buffers: for example storage={{'p': {name!r}}}" if name in STORAGES else None
        raise SettingError("there is no such preset.", got=repr(name), do=do or suggest(name, list(PRESETS)))
    preset = PRESETS[name]
    unsigned, exact = named_state(rule, "unsigned"), named_state(rule, "exact")
    state = {b: preset.full if b in exact else preset.unsigned if b in unsigned else preset.signed for b in buffers}
    return _of_formats(rule, state | {"p": preset.p, "g": preset.g}, buffers)


def _of_formats(rule: Rule, given: Mapping[str, Any], buffers: tuple[str, ...]) -> dict[str, str]:
    where = f"storage of {type(rule).__name__}"
    for b, name in given.items():
        if b not in buffers:
            raise SettingError(f"there is no buffer {b!r}.", do=suggest(str(b), list(buffers)), where=where)
        if not isinstance(name, str) or name not in STORAGES:
            do = suggest(str(name), list(STORAGES))
            raise SettingError(f"{b!r}: there is no such format.", got=repr(name), do=do, where=where)
    computes = STORAGES[given.get("p", "f32")].computes
    chosen = {b: given.get(b, FULL[computes]) for b in buffers}
    for b, name in chosen.items():
        kind = b if b in ("p", "g") else "state"
        known = [f.name for f in STORAGES.values() if kind in f.holds and f.computes == computes]
        if name not in known:
            what = f"{b!r}, {_KINDS[kind]}, is not stored in the format {name}."
            if kind in STORAGES[name].holds:
                what = f"{b!r} is stored as {name}, of {STORAGES[name].computes}, but the step computes in {computes}."
            raise SettingError(what, expected=", ".join(known), where=where)
    return chosen
