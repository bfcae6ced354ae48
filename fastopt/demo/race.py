"""Minimize the functions in surfaces.py with several rules: their settings, their paths, and when they arrive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

import fastopt
from fastopt.demo.surfaces import SURFACES, Surface

RATES = {
    "bowl": {
        "sgd": 0.039, "momentum": 0.039, "rmsprop": 0.1, "adam": 0.4, "adagrad": 1.5,
        "adadelta": 0.15, "adamax": 0.4, "nadam": 0.4, "radam": 0.07, "lion": 0.1,
        "lamb": 0.1, "lars": 10.0, "stableadamw": 0.4, "mars": 0.4, "novograd": 0.1, "prodigy": 0.3,
        "adabelief": 0.2, "yogi": 0.2, "ademamix": 1.0, "adopt": 0.7, "adan": 2.0,
        "schedulefreesgd": 0.2, "schedulefreeadamw": 2.0,
        "laprop": 0.7, "signum": 0.1, "qhadam": 1.0, "madgrad": 0.7, "rprop": 1.0, "asgd": 0.02,
        "sophiag": 0.07, "gpaadamw": 2.0,
    },
    "saddle": {
        "sgd": 0.05, "momentum": 0.05, "rmsprop": 0.03, "adam": 0.05, "adagrad": 0.15,
        "adadelta": 0.3, "adamax": 0.05, "nadam": 0.05, "radam": 0.2, "lion": 0.04,
        "lamb": 0.03, "lars": 30.0, "stableadamw": 0.1, "mars": 0.1, "novograd": 0.1,
        "adabelief": 0.07, "yogi": 0.2, "ademamix": 0.1, "adopt": 0.07, "adan": 1.0,
        "schedulefreesgd": 2.0, "schedulefreeadamw": 0.7,
        "laprop": 1.0, "signum": 0.02, "qhadam": 0.2, "madgrad": 2.0, "rprop": 0.1, "asgd": 0.05,
        "sophiag": 0.07, "gpaadamw": 1.0,
    },
    "rosenbrock": {
        "sgd": 1e-3, "momentum": 1e-3, "rmsprop": 7e-3, "adam": 0.1, "adagrad": 1.0,
        "adadelta": 3e-3, "adamax": 0.5, "nadam": 0.04, "radam": 4e-3, "lion": 4e-3,
        "lamb": 0.03, "lars": 3.0, "stableadamw": 0.1, "mars": 0.03, "novograd": 0.01,
        "adabelief": 2.0, "yogi": 1.0, "ademamix": 0.4, "adopt": 2.0, "adan": 0.02,
        "schedulefreesgd": 7e-3, "schedulefreeadamw": 0.2,
        "laprop": 0.7, "signum": 4e-3, "qhadam": 0.04, "madgrad": 0.01, "rprop": 2e-3, "asgd": 1e-3,
        "sophiag": 7e-3, "gpaadamw": 2.0,
    },
    "beale": {
        "sgd": 3.5e-3, "momentum": 3.5e-3, "rmsprop": 0.02, "adam": 0.1, "adagrad": 0.5,
        "adadelta": 0.03, "adamax": 0.3, "nadam": 0.1, "radam": 0.02, "lion": 0.01,
        "lamb": 0.01, "lars": 3.0, "stableadamw": 0.1, "mars": 0.1, "novograd": 0.03,
        "adabelief": 0.2, "yogi": 0.2, "ademamix": 0.7, "adopt": 1.0, "adan": 2.0,
        "schedulefreesgd": 0.07, "schedulefreeadamw": 0.7,
        "laprop": 0.2, "signum": 0.01, "qhadam": 0.2, "madgrad": 0.2, "rprop": 2.0, "asgd": 3.5e-3,
        "sophiag": 0.02, "gpaadamw": 2.0,
    },
}  # fmt: skip
"""Learning rates that suit each rule. SGD's is near the largest stable one, and momentum has the same, to compare them.
Rules that are not listed use their default."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"dampening": 0.0},
    "rmsprop": {"alpha": 0.9},
    "adadelta": {"eps": 0.1},
    "radam": {"betas": (0.9, 0.9)},
}


NEAR = 0.01
"""A rule has arrived when f stays within this distance of its minimum."""


class Trajectory(NamedTuple):
    """The path of a rule: `path` has a row (x, y) for the start and for each step, `heights` the values of f.

    `arrived` is the step from which on f stays within `NEAR` of its minimum up to the last step, or None. A path that
    only passes the minimum has not arrived.
    """

    name: str
    rule: Any
    path: np.ndarray
    heights: np.ndarray
    arrived: int | None


def make_rule(name: str, surface: str) -> Any:
    """Make a rule with its settings for a surface; momentum is heavy-ball momentum except on the bowl."""
    settings = {} if (name, surface) == ("momentum", "bowl") else _SETTINGS.get(name, {})
    rate = {"lr": RATES[surface][name]} if name in RATES[surface] else {}
    return fastopt.RULES[name](**rate, **settings)


def describe(rule: Any) -> str:
    """Return a rule's learning rate and the settings that differ from the defaults: "lr=0.05, dampening=0.0"."""
    if isinstance(rule, fastopt.GradientNoise):
        return f"{describe(rule.rule)}, eta={rule.eta}"
    settings = [(f.name, getattr(rule, f.name), f.default) for f in fields(rule)]
    return ", ".join(f"{name}={value}" for name, value, default in settings if name == "lr" or value != default)


def run(name: str, rule: Any, surface: Surface, *, steps: int, seed: int, backend: str) -> Trajectory:
    """Take so many steps with `rule` from the start of the surface, in float64."""
    opt = fastopt.Optimizer(rule, {"xy": np.array(surface.start)}, backend=backend, seed=seed)
    path = np.empty((steps + 1, 2))
    path[0] = surface.start
    with np.errstate(all="ignore"):  # a run that diverges shows in its path
        for step in range(1, steps + 1):
            opt.grads["xy"][...] = surface.gradient(*opt.params["xy"])
            opt.step()
            path[step] = opt.params["xy"]
        heights = surface.f(*path.T)
    near = heights - surface.f(*surface.minima[0]) <= NEAR
    arrived = int(np.flatnonzero(~near)[-1]) + 1
    return Trajectory(name, rule, path, heights, arrived if arrived <= steps else None)


def rows(races: Mapping[str, list[Trajectory]]) -> list[tuple[str, ...]]:
    """Return a table's rows: surface, rule, settings, the step at which it arrived, and the final value of f."""
    found = []
    for surface, race in races.items():
        for k, one in enumerate(race):
            arrived = f"not in {len(one.path) - 1}" if one.arrived is None else str(one.arrived)
            final = f"{one.heights[-1]:.3g}"
            found.append((surface if k == 0 else "", one.name, describe(one.rule), arrived, final))
    return found


def race(names: list[str], *, steps: int | None, seed: int, backend: str) -> dict[str, list[Trajectory]]:
    """Run the rules on every surface; on the saddle SGD also runs with gradient noise."""
    found: dict[str, list[Trajectory]] = {}
    for key, surface in SURFACES.items():
        rules = [(name, make_rule(name, key)) for name in names]
        if key == "saddle" and "sgd" in names:
            noisy = fastopt.GradientNoise(make_rule("sgd", key), eta=0.3)
            rules.insert(names.index("sgd") + 1, ("sgd + noise", noisy))
        found[key] = [
            run(name, rule, surface, steps=steps or surface.steps, seed=seed, backend=backend) for name, rule in rules
        ]
    return found
