"""What an Optimizer saves and loads: a flat dict of values in the computing precision, whatever the storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.arguments import by_name, require_like, require_names
from fastopt.arrays import adopt
from fastopt.checks import integer, seed_number
from fastopt.errors import LayoutError
from fastopt.kernels.compiler.specialization import describe
from fastopt.parameters import Group, NamedValues


class Checkpoint(dict):
    """What `fastopt.load` returns: a dict as `state_dict` returns it, and `metadata`, what else the file says."""

    def __init__(self, state: Mapping[str, Any], metadata: Mapping[str, Any]):
        super().__init__(state)
        self.metadata = dict(metadata)


def layout(values: NamedValues) -> list[list[Any]]:
    """Describe the groups: the rule of each, and its parameters in their order."""
    return [[describe(group.plan.rule), list(group.shapes)] for group in values.groups]


def save(values: NamedValues, t: int, seed: int) -> dict[str, Any]:
    """Return all that a later run needs, as copies in the CPU's memory."""
    arrays = {
        f"{b}/{name}": values.library.to_numpy(value) for b in values.buffers for name, value in values.read(b).items()
    }
    return {"t": t, "seed": seed, "rules": rules(values), **arrays}


def check(state: Any, values: NamedValues) -> tuple[int, int, dict[str, dict[str, Any]]]:
    """Return t, the seed, and of each buffer the values by name, that `save` returned, or raise a LayoutError."""
    given, own = by_name(state, "entries"), values.templates()
    keys = {f"{b}/{name}": (b, name) for b, templates in own.items() for name in templates}
    require_names(given, {"t": 0, "seed": 0, "rules": 0, **keys}, "the entry")
    saved = state.metadata.get("layout") if isinstance(state, Checkpoint) else None
    if saved not in (None, layout(values)) and any(_goes_by_place(group) for group in values.groups):
        raise LayoutError(
            "the parameters were in another order, or other groups, so steps would round, or draw noise, differently.",
            got=_words(saved),
            expected=_words(layout(values)),
            do="build the optimizer as it was, or load dict(checkpoint) to go on with other bits",
        )
    if str(given["rules"]) != rules(values):
        do = "where this rule goes on with the same state, load {**state, 'rules': opt.state_dict()['rules']}"
        raise LayoutError("the state belongs to other rules.", got=str(given["rules"]), expected=rules(values), do=do)
    found: dict[str, dict[str, Any]] = {}
    for key, (b, name) in keys.items():
        array = adopt(given[key], key)
        require_like(array, own[b][name], f"the entry {key!r}")
        found.setdefault(b, {})[name] = array
    t = integer("the entry 't'", given["t"], 0, 2**63, error=LayoutError)
    return t, seed_number(given["seed"], "the entry 'seed'", LayoutError), found


def _goes_by_place(group: Group) -> bool:
    """Whether bits depend on where a parameter lies: by noise, random rounding, or tiles that it shares."""
    return group.plan.program.noise or group.plan.program.tiled


def _words(described: list[list[Any]]) -> str:
    text = "; ".join(f"{rule}: {', '.join(names)}" for rule, names in described)
    return text if len(text) <= 300 else f"{text[:300]}…"


def rules(values: NamedValues) -> str:
    """Name the rules and their choices: state means the same to rules that are described alike."""
    return ", ".join(sorted({describe(group.plan.rule) for group in values.groups}))


def assigned(params: Mapping[str, Any], values: NamedValues, buffer: str = "p") -> dict[str, Any]:
    """Check values for a buffer of some of the parameters, of the computing precision, or raise a LayoutError."""
    what = "parameter" if buffer == "p" else f"state {buffer!r} of"
    given = by_name(params, "parameters" if buffer == "p" else f"state {buffer!r}")
    own = values.templates()[buffer]
    require_names({**own, **given}, own, f"the {what}")
    arrays = {name: adopt(value, name) for name, value in given.items()}
    for name, array in arrays.items():
        require_like(array, own[name], f"the {what} {name!r}")
    return arrays
