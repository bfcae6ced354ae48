"""The tables of docs/storage.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality.training import against_f32

PEERS = ("bitsandbytes", "torchao")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the first column is text."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(run: Mapping[str, Any]) -> dict[str, str]:
    """Return every table of docs/storage.md, by name, from one run's results."""
    found, made = run["results"], {}
    tasks = [task for task in ("digits", "text") if task in found]
    costs = {task: against_f32(found[task], "validation") for task in tasks}
    made["presets"] = table(
        ["preset", "p", "g", "m", "v", "bytes moved per step", "bytes resident", *(f"{task}: loss" for task in tasks)],
        [
            [f"`{name}`", *(f"`{size['formats'][b]}`" for b in "pgmv"), _bytes(size["moved"]), _bytes(size["resident"])]
            + [_percent(costs[task], name) for task in tasks]
            for name, size in found["bytes"].items()
        ],
    )
    if "moments" in found:
        rows = [r for r in found["moments"] if r["stream"] == "mean 0"]
        codes = list(dict.fromkeys(r["code"] for r in rows))
        rows = sorted(rows, key=lambda r: (codes.index(r["code"]), r["sigma"]))
        named = [(r, [r["code"], f"{r['sigma']:g}"]) for r in rows]
        made["v"] = table(
            ["v stored as", "σ", "within a factor of 1.5", "zeros", "1 %", "median", "99 %"],
            [
                [*n, share(r["v"]["within"]), share(r["v"]["zeros"]), *(f"{q:.3f}" for q in r["v"]["quantiles"])]
                for r, n in named
            ],
        )
        steady = sorted((r for r in found["moments"] if r["stream"] == "mean s"), key=lambda r: codes.index(r["code"]))
        named += [(r, [r["code"], f"{r['sigma']:g}, steady"]) for r in steady]
        made["m"] = table(
            ["m stored as", "σ", "error, median", "error, 99 %", "bias, mean", "bias, 99 %", "zeros"],
            [
                [*n, *(f"{e:.3f}" for e in m["error"]), f"{m['bias']:+.4f}", f"{m['bias_99']:.3f}", share(m["zeros"])]
                for m, n in ((r["m"], n) for r, n in named)
            ],
        )
        made["direction"] = table(
            ["m and v stored as", "σ", "error, median", "error, 99 %", "size of the step"],
            [
                [*n, *(_number(e) for e in r["d"]["error"]), _number(r["d"]["size"])]
                for r, n in named[: len(rows)]
            ],
        )  # fmt: skip
    for task in ("digits", "text"):
        if task in found:
            made[task] = training_table(found[task], 4 if task == "digits" else 3)
    if "rules" in found:
        made["rules"] = table(
            ["state", "storage", "mean, relative to float32's", "element: 1 %", "median", "99 %"],
            [
                [r["of"], _named(r["storage"]), f"{r['mean']:.3f}", *(f"{q:.3f}" for q in r["quantiles"])]
                for r in found["rules"]
            ],
        )
    if "rounding" in found:
        made["pushed"] = table(
            ["p stored as", "after the last step: mean", "5 % to 95 % of elements"],
            [[f"`{name}`", *_ends(path[-1])] for name, path in found["rounding"]["pushed"].items()],
        )
        third = len(found["rounding"]["decayed"]["f32"]) // 3 - 1
        made["decayed"] = table(
            ["v stored as", "grown: mean", "5 % to 95 %", "decayed: mean", "5 % to 95 %"],
            [
                [f"`{name}`", *_ends(path[third]), *_ends(path[-1])]
                for name, path in found["rounding"]["decayed"].items()
            ],
        )
    machine, versions = run["machine"], run["versions"]
    names = ", ".join(f"{k} {versions[k]}" for k in ("python", "numpy", "torch", *PEERS) if versions.get(k))
    made["run"] = (
        f"Measured {run['date'][:10]} on {machine['cpu']}, one thread, in {run['seconds'] / 60:.0f} minutes; {names}."
    )
    return made


def training_table(found: Mapping[str, Any], digits: int) -> str:
    """Return the table of one task; "within spread" is a difference of at most float32's deviation over seeds."""
    last, unseen = (against_f32(found, what) for what in ("training", "validation"))
    accurate = "accuracy" in found["f32"]
    head = ["preset", "training loss", "within spread", "validation loss", "± over seeds", "paired difference"]
    rows = []
    for name, of in unseen.items():
        row = [_named(name), f"{last[name]['mean']:.{digits}f}", _verdict(last[name])]
        row += [f"{of['mean']:.{digits}f}", f"{of['deviation']:.{digits}f}"]
        row += [f"{of['difference']:+.{digits}f}", f"{of['error']:.{digits}f}", _verdict(of)]
        if name == "f32":
            row = [x if k in (0, 1, 3, 4) else "" for k, x in enumerate(row)]
        rows.append(row + ([f"{100 * np.mean(found[name]['accuracy']):.2f} %"] if accurate else []))
    return table([*head, "± standard error", "within spread"] + (["test accuracy"] if accurate else []), rows)


def _named(name: str) -> str:
    return f"`{name}`" if name in fastopt.PRESETS else name


def _verdict(of: Mapping[str, Any]) -> str:
    return "yes" if of["within"] else "**no**"


def _percent(cost: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Format what a preset adds to float32's validation loss, with the standard error."""
    if name not in cost or name == "f32":
        return "0" if name == "f32" else "not measured"
    scale = 100 / cost["f32"]["mean"]
    return f"{cost[name]['difference'] * scale:+.1f} ± {cost[name]['error'] * scale:.1f} %"


def _ends(point: Sequence[float]) -> list[str]:
    return [f"{point[1]:.4f}", f"{point[2]:.4f} to {point[3]:.4f}"]


def _bytes(count: float) -> str:
    return f"{count:.2f}".removesuffix(".00")


def share(x: float) -> str:
    return f"{100 * x:.1f} %"


def _number(x: float) -> str:
    return f"{x:.3f}" if x < 100 else f"{x:,.0f}"


def claims(run: Mapping[str, Any]) -> dict[str, bool]:
    """Check the requirement on 8-bit second moments: 98 % within a factor of 1.5 and no zeros, at every σ."""
    rows = [r for r in run["results"].get("moments", []) if r["code"] == "f8 and uf8" and r["stream"] == "mean 0"]
    return {f"uf8, σ = {r['sigma']:g}": r["v"]["within"] >= 0.98 and r["v"]["zeros"] == 0 for r in rows}


def write_document(run: Mapping[str, Any], document: Path) -> None:
    """Write every table of a run between its marks in the document: `<!-- table: v -->` … `<!-- end -->`."""
    text = document.read_text(encoding="utf-8")
    for name, made in tables(run).items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    document.write_text(text, encoding="utf-8")
