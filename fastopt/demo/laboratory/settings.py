"""What the page offers: its rules, and the values of every slider. The page has no others, so a test can try all."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import fastopt
from fastopt.demo.race import RATES
from fastopt.schedules import Cosine, Exponential, InverseTime, Schedule, Step, Warmup

_E24 = (10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91)
LEARNING_RATES = [float(f"{m}e{k}") for k in range(-5, 1) for m in _E24] + [100.0]
"""24 in each decade from 1e-4 to 100, as resistors have them."""
DECAY_RATES = [
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999,
]  # fmt: skip
"""Of β and what other rules call it. Not 0, which would be another kernel."""
NOISES = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
RUN_LENGTHS = [100, 200, 500, 1000]

SCHEDULES: dict[str, dict[str, list]] = {
    "constant": {},
    "time": {"k": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]},
    "exponential": {"gamma": [0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999]},
    "step": {"every": [10, 20, 50, 100, 200], "factor": [0.1, 0.2, 0.25, 0.5, 0.75, 0.9]},
    "cosine": {"warmup": [0, 5, 10, 20, 50, 100]},
}
"""The kinds of schedule with their settings; a cosine ends with the run."""
STARTING = {"k": 0.02, "gamma": 0.98, "every": 50, "factor": 0.5, "warmup": 10}
"""Where their sliders start."""


def make_schedule(kind: str, lr: float, steps: int, **settings: Any) -> Schedule | float:
    """Return a learning rate that follows a schedule from `lr` on, in a run of so many steps."""
    match kind:
        case "time":
            return InverseTime(lr, k=settings["k"])
        case "exponential":
            return Exponential(lr, gamma=settings["gamma"])
        case "step":
            return Step(lr, every=settings["every"], factor=settings["factor"])
        case "cosine":
            return Warmup(settings["warmup"]) * Cosine(lr, steps=steps)
    return lr


# ASGD's step size has a power of settings and t, of which a table would be too long; with alpha = 1 it is a quotient.
_SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"dampening": 0.0},
    "rmsprop": {"alpha": 0.9},
    "adadelta": {"eps": 0.1},
    "asgd": {"alpha": 1.0},
}
RULES: dict[str, Any] = {name: rule(**_SETTINGS.get(name, {})) for name, rule in fastopt.RULES.items()}
RULES["nesterov"] = fastopt.Momentum(dampening=0.0, nesterov=True)
"""The rules that the page offers, by name."""

ABOUT = {
    "sgd": "Each step goes straight down the gradient, as far as the learning rate says.",
    "momentum": "A ball that rolls: steps along a valley add up, steps across it cancel.",
    "nesterov": "Momentum that takes the gradient where it will be after this step, and so brakes earlier.",
    "rmsprop": "Each coordinate's gradient is divided by its recent size, so a steep one takes steps no larger.",
    "adam": "Momentum whose steps are divided by the gradient's recent size, both corrected for their start at zero.",
    "asgd": "SGD whose step size falls slowly; here with alpha = 1.",
}
"""What the page says about rules whose docstring begins in another way."""

_RATES = {
    "bowl": {"momentum": 0.015, "nesterov": 0.015},
    "crate": {"sgd": 0.2, "momentum": 0.051, "nesterov": 0.1, "rmsprop": 0.051, "adam": 0.3},
    "batch": {"sgd": 0.15, "momentum": 0.05, "nesterov": 0.05, "rmsprop": 0.1, "adam": 0.3},
}
"""Learning rates where those of the race do not suit."""
_LIKE = {"crate": "saddle", "batch": "saddle"}


def rate(name: str, problem: str) -> float:
    """Return the learning rate at which a rule's slider starts on a problem: the nearest that the slider has."""
    raced = RATES[_LIKE.get(problem, problem)]
    like = "momentum" if name == "nesterov" else name
    wanted: float = _RATES.get(problem, {}).get(name) or raced.get(like) or RULES[name].lr
    return min(LEARNING_RATES, key=lambda x: max(x, wanted) / min(x, wanted))


def decay_settings(name: str) -> list[tuple[str, int | None]]:
    """Return the settings of a rule that have a slider for a decay rate: its field, and the index in a tuple."""
    rule, found = RULES[name], []
    for f in fields(rule):
        if f.name == "betas":
            found += [(f.name, k) for k in range(len(rule.betas))]
        elif f.name in ("beta", "rho") or (f.name == "momentum" and rule.momentum) or (name, f.name) == (
            "rmsprop", "alpha",
        ):  # fmt: skip
            found.append((f.name, None))
    return found


def plain_settings(rule: Any) -> dict[str, Any]:
    """Return the fields of a rule as the page gets them."""
    return {f.name: getattr(rule, f.name) for f in fields(rule)}
