"""What the tests of the laboratory's page share: its numbers, what Python makes of the same, and its sliders."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import browser
import numpy as np
import pytest

from fastopt.demo.laboratory import settings
from fastopt.demo.laboratory.problems import BATCHES, PROBLEMS
from fastopt.demo.laboratory.runs import Point, run

needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
BASICS = ("sgd", "momentum", "rmsprop", "adam")
"""The rules that are chosen at first."""


def shown(lab: browser.Browser) -> dict[str, Point]:
    """Return the numbers on the screen, exactly."""
    script = """return [...document.querySelectorAll("#numbers tbody tr")].map((row) => [
        row.dataset.rule, [...row.cells].slice(1).map((cell) => [cell.dataset.number, cell.dataset.exact])])"""
    found = {rule: dict(cells) for rule, cells in lab.run(script)}
    numbers = {rule: [float(cells[key]) for key in ("t", "x", "y", "loss")] for rule, cells in found.items()}
    return {rule: Point(int(t), x, y, loss) for rule, (t, x, y, loss) in numbers.items()}


SLIDERS = {
    "lr": settings.LEARNING_RATES,
    "betas-0": settings.DECAY_RATES,
    "betas-1": settings.DECAY_RATES,
    "beta": settings.DECAY_RATES,
    "noise": settings.NOISES,
    "seed": range(20),
    "run-length": settings.RUN_LENGTHS,
    "speed": (2, 5, 10, 30, 60, 120, 300),
    "batch": BATCHES,
    **{name: values for sliders in settings.SCHEDULES.values() for name, values in sliders.items()},
}
"""The last part of a slider's id → its values."""


def slide(lab: browser.Browser, **values: float) -> None:
    """Move sliders by keys, each to a value; for a - in a name stands _."""
    for name, value in values.items():
        css = name.replace("_", "-")
        of = SLIDERS[css] if css in SLIDERS else SLIDERS[css.partition("-")[2]]
        lab.slide(f"#{css}", list(of).index(value))
        assert float(lab.find(f"#{css}").get_attribute("data-value")) == value


def python(name: str, problem: str, t: int, *, dtype: str = "float64", rule: Any = None, **options: Any) -> Point:
    """Return where fastopt.Optimizer is at step t."""
    return points(name, problem, t, dtype=dtype, rule=rule, **options)[-1]


def points(name: str, problem: str, steps: int, *, dtype: str = "float64", rule: Any = None, **options: Any) -> list:
    """Return where fastopt.Optimizer is at steps 0, 1, …, by default with the page's learning rate."""
    rule = rule or replace(settings.RULES[name], lr=settings.rate(name, problem))
    start = options.pop("start", PROBLEMS[problem].start)
    return list(run(rule, PROBLEMS[problem]._replace(start=start), dtype=np.dtype(dtype), steps=steps, **options))


def wait_for_the_end(lab: browser.Browser) -> None:
    """Wait until a run of 100 steps is over."""
    for _ in range(200):
        if lab.find("#clock").text == "100" and lab.find("#run").text == "Run":
            return
        time.sleep(0.05)
    raise AssertionError("the run does not end")


def only(lab: browser.Browser, names: tuple[str, ...]) -> None:
    """Choose these rules and no others."""
    for chip in lab.all(".chip input:checked"):
        lab.run("arguments[0].click()", chip)
    for name in names:
        lab.click(f"#rule-{name}")
