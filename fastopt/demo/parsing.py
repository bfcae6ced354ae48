"""Parse rules, storages and settings on the command line; errors suggest the correct name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import fastopt
from fastopt.errors import SettingError, suggest


def all_rules() -> dict[str, type]:
    """Return the rules by name, those for matrices too."""
    return {**fastopt.RULES, **fastopt.MATRIX_RULES}


def rule_names(names: list[str], *, matrices: bool = True) -> list[str]:
    """Check names of rules and remove duplicates; `matrices` says whether they may be for matrices alone."""
    for name in names:
        if name not in all_rules():
            do = suggest(name, list(all_rules()))
            raise SettingError(f"there is no rule {name!r}.", do=do)
        if name in fastopt.MATRIX_RULES and not matrices:
            what = f"{name} is for matrices, and a point on a surface is none."
            raise SettingError(what, do="choose another rule, or watch it by fastopt train")
    return list(dict.fromkeys(names))


def parse_storage(text: str) -> str | dict[str, str]:
    """Parse a storage: the name of a preset, or formats by buffer, "p=split,g=bf16,m=f8"."""
    if "=" not in text:
        return text
    pairs = [pair.partition("=") for pair in text.split(",")]
    return {buffer.strip(): name.strip() for buffer, _, name in pairs}


def parse_setting(rule: type, text: str) -> tuple[str, Any]:
    """Parse "name=value"; the value has the type of the rule's setting."""
    name, equals, value = (part.strip() for part in text.partition("="))
    defaults = {f.name: f.default for f in fields(rule)}
    kinds = {f.name: f.type for f in fields(rule)}
    if not equals:
        raise SettingError(f"--set {text!r} has no value.", expected="NAME=VALUE", do=f"--set {name}=…")
    if name not in defaults:
        do = suggest(name, list(defaults))
        raise SettingError(f"{rule.__name__} has no setting {name!r}.", do=do)
    default = defaults[name]
    if "str" in str(kinds[name]):
        return name, None if value.lower() == "none" else value
    try:
        if isinstance(default, bool):
            return name, {"true": True, "false": False}[value.lower()]
        if isinstance(default, tuple):
            return name, tuple(float(x) for x in value.strip("()").split(","))
        if isinstance(default, int):
            return name, int(value)
        return name, None if default is None and value.lower() == "none" else float(value)
    except (KeyError, ValueError):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default or 0.0)
        kind = "numbers" if isinstance(default, tuple) else "a number"
        expected = "true or false" if isinstance(default, bool) else f"{kind}, for example --set {name}={shown}"
        raise SettingError(f"the setting {name} has the wrong type.", got=repr(value), expected=expected) from None
