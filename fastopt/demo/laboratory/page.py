"""Assembles the page: the printed rules, schedules and problems, and the sources in docs/laboratory, in one file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.demo.laboratory import problems, settings
from fastopt.errors import SettingError
from fastopt.kernels.compiler.plan import plan
from fastopt.kernels.javascript.host import print_host
from fastopt.kernels.javascript.powers import print_tables
from fastopt.kernels.javascript.printer import print_function, print_program, runtime
from fastopt.schedules import Cosine, Exponential, InverseTime, Product, Step, Warmup

DTYPES = {"float32": "f32", "float64": "f64"}
SCRIPTS = (
    "run.js", "controls.js", "draw.js", "contours.js", "trails.js", "map.js", "descent.js", "averages.js",
    "schedules.js", "main.js",
)  # fmt: skip
"""The hand-written scripts, in their order."""
_SCHEDULES = (InverseTime, Exponential, Step, Cosine, Warmup, Product)
_LONGEST = max(settings.RUN_LENGTHS)


def build(sources: Path) -> str:
    """Return the page, made of the sources in a folder.

    Raises:
        SettingError: the folder has no sources of the page.

    """
    try:
        html = (sources / "index.html").read_text(encoding="utf-8")
        style = (sources / "style.css").read_text(encoding="utf-8")
        scripts = [(sources / name).read_text(encoding="utf-8") for name in SCRIPTS]
    except OSError as error:
        what = "this folder has not all sources of the laboratory."
        do = "pass --sources docs/laboratory of a checkout of fastopt"
        raise SettingError(what, got=error, do=do, where="laboratory") from error
    script = "\n".join(['"use strict";', generated(), *scripts])
    assert "</script" not in script
    for marker, text in (("/* style.css */", style), ("/* scripts */", script)):
        assert html.count(marker) == 1
        html = html.replace(marker, text)
    return html


def generated() -> str:
    """Return the script with everything that is printed: an object with the name of the library."""
    programs = {
        name: {dtype: plan(rule, storage).program for dtype, storage in DTYPES.items()}
        for name, rule in settings.RULES.items()
    }
    printed = {p.name: print_program(p) for of_rule in programs.values() for p in of_rule.values()}
    scalars = {f"{name}_scalars": (type(rule), "scalars") for name, rule in settings.RULES.items()}
    schedules = {f"{kind.__name__}_at": (kind, "at") for kind in _SCHEDULES}
    parts = [
        runtime(),
        print_tables(*_powers(), cosines=_LONGEST),
        *printed.values(),
        print_host(scalars | schedules),
        *_functions(),
        f"const DATA = {json.dumps(_data(), ensure_ascii=False)};",
        "return {",
        "  allocate, takeStep, noiseKeys, power: $power, data: DATA,",
        "  programs: {",
        *(f"    {name}: {{ {', '.join(f'{d}: {p.name}' for d, p in x.items())} }}," for name, x in programs.items()),
        "  },",
        f"  scalars: {{ {', '.join(f'{name}: {name}_scalars' for name in settings.RULES)} }},",
        f"  schedules: {{ {', '.join(f'{kind.__name__}: {kind.__name__}_at' for kind in _SCHEDULES)} }},",
        "  functions: {",
        *(f"    {dtype}: {{ {', '.join(f'{n}: {n}_{dtype}' for n in _FUNCTIONS)} }}," for dtype in DTYPES),
        "  },",
        "};",
    ]
    return "\n".join(["const fastopt = (() => {", *parts, "})();"])


_FUNCTIONS: dict[str, tuple[Any, str, str]] = {
    **{f"{name}_f": (p.f, p.numbers, "") for name, p in problems.PROBLEMS.items()},
    **{f"{name}_gradient": (p.gradient, p.numbers, "") for name, p in problems.PROBLEMS.items()},
    "noisy": (problems.noisy, "g scale", "key0 key1 index"),
    "sample_number": (problems.sample_number, "", "key0 key1 index"),
    "series_point": (problems.series_point, "t z scale", ""),
}
"""Function → its definition, its numbers and its words."""


def _functions() -> list[str]:
    """Print the functions of the problems, for each precision."""
    return [
        print_function(
            f"{name}_{dtype}",
            function,
            **dict.fromkeys(numbers.split(), np.dtype(dtype)),
            **dict.fromkeys(words.split(), np.dtype(np.uint32)),
        )
        for dtype in DTYPES
        for name, (function, numbers, words) in _FUNCTIONS.items()
    ]


def _powers() -> tuple[dict[float, int], list[tuple[float, float]]]:
    """Return the powers that the rules and schedules take of what the sliders have: see `print_tables`."""
    bases = dict.fromkeys([*settings.DECAY_RATES, *settings.SCHEDULES["exponential"]["gamma"]], _LONGEST + 1)
    for rule in settings.RULES.values():
        bases |= dict.fromkeys(getattr(rule, "betas", ()), _LONGEST + 1)
    drops = _LONGEST // min(settings.SCHEDULES["step"]["every"])
    bases = dict.fromkeys(settings.SCHEDULES["step"]["factor"], drops) | bases
    others = [(t - 1, 0.25) for t in range(3, _LONGEST + 1)]  # ADOPT
    others += [(0.96, t * settings.RULES["nadam"].momentum_decay) for t in range(1, _LONGEST + 2)]
    others += [(settings.RULES["stableadamw"].eps, 2)]
    return bases, others


def _data() -> dict[str, Any]:
    """Return what the page needs to know, as JSON has it."""
    rules = {
        name: {
            "title": "Nesterov" if name == "nesterov" else type(rule).__name__,
            "about": _about(rule, name),
            "settings": settings.plain_settings(rule),
            "initial": plan(rule, "f64").initial_state(),
            "sliders": settings.decay_settings(name),
            "rates": {problem: settings.rate(name, problem) for problem in problems.PROBLEMS},
        }
        for name, rule in settings.RULES.items()
    }
    shown = {
        name: {key: getattr(p, key) for key in p._fields if key not in ("f", "gradient")}
        for name, p in problems.PROBLEMS.items()
    }
    return {
        "rules": rules,
        "problems": shown,
        "samples": {"a": problems.SAMPLE_A.tolist(), "c": problems.SAMPLE_C.tolist()},
        "batches": problems.BATCHES,
        "firstOfBatch": problems.FIRST_OF_BATCH,
        "learningRates": settings.LEARNING_RATES,
        "decayRates": settings.DECAY_RATES,
        "noises": settings.NOISES,
        "runLengths": settings.RUN_LENGTHS,
        "schedules": settings.SCHEDULES,
        "starting": settings.STARTING,
    }


def _about(rule: Any, name: str) -> str:
    """Return what the page says about a rule, by default the first sentence of its docstring, without its name."""
    sentence = re.sub(r"\s+", " ", (type(rule).__doc__ or "").split("\n\n")[0]).partition(": ")[2]
    return settings.ABOUT.get(name, sentence[:1].upper() + sentence[1:]).replace("`", "").replace("'", "’")
