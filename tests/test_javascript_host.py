"""Scalars, schedules and runs of the laboratory, run by Node: equal to Python's for every value of every slider."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_javascript import needs_node, run_node

import fastopt
from fastopt.demo.laboratory import settings
from fastopt.demo.laboratory.page import generated
from fastopt.demo.laboratory.problems import BATCHES, PROBLEMS, SAMPLES, series_point
from fastopt.demo.laboratory.runs import run
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.javascript.host import print_host
from fastopt.kernels.javascript.powers import misrounded, print_tables
from fastopt.schedules import Warmup

SOURCES = Path(__file__).parent.parent / "docs" / "laboratory"
LONGEST = max(settings.RUN_LENGTHS)
_DIGEST = """
const digest = (numbers) =>
  require("crypto").createHash("sha256").update(new Uint8Array(Float64Array.from(numbers).buffer)).digest("hex");
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
"""


@cache
def page_script() -> str:
    return f"{generated()}\n{(SOURCES / 'run.js').read_text()}\n{_DIGEST}"


def digest(numbers: Iterable[float]) -> str:
    return hashlib.sha256(np.array(list(numbers), "<f8").tobytes()).hexdigest()


def with_setting(rule: Any, field: str, index: int | None, value: float) -> Any:
    """Return the rule as it is when a slider has this value."""
    if index is not None:
        entries = getattr(rule, field)
        value = (*entries[:index], value, *entries[index + 1 :])  # type: ignore[assignment]
    return replace(rule, **{field: value})


def slider_values(name: str) -> list[Any]:
    """Return the rule with each value of each of its sliders; the others stay where they are."""
    rule = settings.RULES[name]
    made = [with_setting(rule, field, k, x) for field, k in settings.decay_settings(name) for x in settings.DECAY_RATES]
    return [*made, *(replace(rule, lr=x) for x in settings.LEARNING_RATES[::12])]


@needs_node
@pytest.mark.parametrize("name", settings.RULES)
def test_a_rules_scalars_equal_pythons_for_every_value_of_its_sliders_at_every_step(name):
    rules, order = slider_values(name), trace(settings.RULES[name], "f64").scalars
    script = f"""{page_script()}
    const found = given.map((one) => {{
      const numbers = [];
      for (let t = 1; t <= {LONGEST}; t++) {{
        const scalars = fastopt.scalars.{name}(one, t);
        for (const name of fastopt.programs.{name}.float64.scalars) numbers.push(scalars[name]);
      }}
      return digest(numbers);
    }});
    console.log(JSON.stringify(found));"""
    found = run_node(script, [settings.plain_settings(rule) for rule in rules])
    for rule, theirs in zip(rules, found, strict=True):
        by_step = [rule.scalars(t) for t in range(1, LONGEST + 1)]
        assert digest(scalars[s] for scalars in by_step for s in order) == theirs, rule


def test_no_slider_makes_another_kernel():
    for name, rule in settings.RULES.items():
        for other in slider_values(name):
            assert trace(other, "f32") is trace(rule, "f32"), other


def schedule_settings() -> list[tuple[str, int, dict]]:
    """Return kind, run length and settings of each schedule that the sliders can make."""
    made = []
    for kind, sliders in settings.SCHEDULES.items():
        combinations: list[dict] = [{}]
        for name, values in sliders.items():
            combinations = [{**one, name: x} for one in combinations for x in values]
        made += [(kind, steps, one) for steps in settings.RUN_LENGTHS for one in combinations]
    return made


@needs_node
@pytest.mark.parametrize("lr", [0.01, 0.33, 9.1])
def test_every_schedule_equals_pythons_at_every_step(lr):
    script = f"""{page_script()}
    const found = given.map(([kind, steps, settings]) => {{
      const schedule = makeSchedule(kind, {lr}, steps, settings);
      const at = (t) => (typeof schedule === "number" ? schedule : schedule.at(t));
      return digest(Array.from({{ length: steps }}, (_, k) => at(k + 1)));
    }});
    console.log(JSON.stringify(found));"""
    found = run_node(script, schedule_settings())
    for (kind, steps, chosen), theirs in zip(schedule_settings(), found, strict=True):
        schedule = settings.make_schedule(kind, lr, steps, **chosen)
        values = [schedule(t) if callable(schedule) else schedule for t in range(1, steps + 1)]
        assert digest(values) == theirs, (kind, steps, chosen)


def run_settings(name: str, problem: str) -> list[dict[str, Any]]:
    """Return settings of the runs that a rule is tested with on a problem."""
    lr = settings.rate(name, problem)
    plain = {"lr": lr, "steps": 100, "seed": 0, "batch": SAMPLES, "noise": 0.0, "kind": "constant", "schedule": {}}
    scheduled = plain | {"kind": "cosine", "schedule": {"warmup": 10}, "noise": 0.2, "seed": 7}
    batches = [plain | {"batch": b, "seed": b} for b in BATCHES[:-1]] if PROBLEMS[problem].sampled else []
    return [plain, scheduled, *(batches if name == "adam" else batches[:1])]


@needs_node
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_rules_run_equals_the_optimizers(problem, precision):
    runs = [(name, one) for name in settings.RULES for one in run_settings(name, problem)]
    script = f"""{page_script()}
    const found = given.map(([rule, one]) => {{
      const lr = makeSchedule(one.kind, one.lr, one.steps, one.schedule);
      const start = fastopt.data.problems.{problem}.start;
      const settings = fastopt.data.rules[rule].settings;
      const run = takeRun({{ ...one, rule, settings, lr, start, problem: "{problem}", precision: "{precision}" }});
      return {{ digest: digest([...run.xs, ...run.ys, ...run.losses]), stopped: run.stopped }};
    }});
    console.log(JSON.stringify(found));"""
    found = run_node(script, runs)
    moved = 0
    for (name, one), theirs in zip(runs, found, strict=True):
        lr = settings.make_schedule(one["kind"], one["lr"], one["steps"], **one["schedule"])
        rule = replace(settings.RULES[name], lr=lr)
        options = {key: one[key] for key in ("steps", "seed", "batch", "noise")}
        points = list(run(rule, PROBLEMS[problem], dtype=np.dtype(precision), **options))
        _, xs, ys, losses = zip(*points, strict=True)
        assert theirs == {"digest": digest([*xs, *ys, *losses]), "stopped": None}, (name, one)
        moved += xs[-1] != xs[0]
    assert moved == len(runs)


@needs_node
def test_the_series_that_is_averaged_equals_pythons():
    t, z = np.arange(200.0), np.linspace(-3, 3, 200)
    script = f"""{page_script()}
    const series = fastopt.functions.float64.series_point;
    console.log(JSON.stringify(digest(given.map(([t, z]) => series(t, z, 0.5)[0]))));"""
    pairs = np.stack([t, z], 1).tolist()
    assert run_node(script, pairs) == digest(series_point(t, z, 0.5))


@needs_node
def test_powers_that_are_not_known_to_be_equal_are_refused():
    script = f"""{print_tables({0.9: 10}, [(0.3, 0.7)], cosines=4)}
    const refused = (f) => {{
      try {{
        return f();
      }} catch (error) {{
        return error instanceof RangeError ? "refused" : "?";
      }}
    }};
    const asked = [[0.9, 10], [0.9, 11], [0.8, 2], [0.3, 0.7], [0.9, 0.5], [2, 0], [2, 1], [1, 0.3], [0, 3]];
    const turns = [0, Math.PI / 4, Math.PI, 0.1].map((x) => refused(() => $cos(x)));
    console.log(JSON.stringify([asked.map(([x, y]) => refused(() => $power(x, y))), turns]));"""
    no = "refused"
    powers, cosines = run_node(script)
    assert powers == [0.9**10, no, no, 0.3**0.7, no, 1, 2, 1, 0]
    assert cosines == [1, np.cos(np.pi / 4), -1, no]


@needs_node
def test_exact_powers_are_rounded_once_ties_to_even():
    bases = [3.0, 5.0, 0.1, 2.0**-0.5, 1 + 2.0**-52, 0.5, 94906267.0]  # of the last one the square is a tie
    script = f"""{print_tables(dict.fromkeys(bases, 30))}
    {_DIGEST}
    const powers = (x) => Array.from({{ length: 31 }}, (_, k) => $power(x, k));
    console.log(JSON.stringify(given.map(powers)));"""
    found = [[float(x) for x in row] for row in run_node(script, bases)]  # beyond 2⁵³ it writes zeros
    assert found == [[x**k for k in range(31)] for x in bases]


def test_a_power_below_the_normal_numbers_is_refused_when_tables_are_made():
    assert misrounded(0.5, 1022) == ()
    with pytest.raises(fastopt.SettingError, match="below the normal numbers"):
        misrounded(0.5, 1023)


@dataclass(frozen=True)
class Awkward:
    """A class whose methods use words of JavaScript, and what the translation knows and does not know."""

    new: float = 2.0

    def at(self, t):
        var, power = self.new, 3
        if t > 2 and not (self.new and t == 5):
            var += power ** (t % 2) + (2 - t) % 3
        else:
            var = -var if self.new is None else max(var, t // 2)
        return {"case": var * (1 - (2 - t)), "default": min(self.new, var) / power}

    def least(self, t):
        return min(t, 2, self.new)

    def defaulted(self, t, more=1):
        return t + more

    def listed(self, t):
        return [t for t in (1, 2) if t]

    def raising(self, t):
        raise ValueError(t)

    def printing(self, t):
        return print(t)


@needs_node
def test_names_that_are_words_of_javascript_are_translated():
    script = f"""{print_tables({3.0: 2})}\n{print_host({"at": (Awkward, "at")})}
    console.log(JSON.stringify([0, 1, 2, 3, 4, 5, 6].map((t) => at({{ new: 2 }}, t))));"""
    assert run_node(script) == [Awkward().at(t) for t in range(7)]


@pytest.mark.parametrize("method", ["least", "defaulted", "listed", "raising", "printing"])
def test_what_is_not_translated_is_refused_by_name(method):
    with pytest.raises(fastopt.RuleError, match=r"cannot be printed as JavaScript") as caught:
        print_host({"f": (Awkward, method)})
    assert caught.value.where == f"Awkward.{method}"


def test_a_function_is_printed_once_and_before_what_calls_it():
    text = print_host({"a": (fastopt.Adam, "scalars"), "b": (fastopt.Yogi, "scalars"), "c": (Warmup, "at")})
    assert text.count("function weight_decay_decay_of_step(") == 1
    assert text.index("function weight_decay_decay_of_step(") < text.index("function a(")
