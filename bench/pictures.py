"""Four pictures of a run: time by bytes, time by size, time by number of small tensors, and shares of the ceiling."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from fastopt.bench.cases import MAIN, STORAGE_RULES
from fastopt.bench.record import Results
from fastopt.bench.report import beyond_cache, case_of, duration

COLOURS = {
    "fastopt": "#d1341f", "ceiling": "#333333", "NumPy": "#9a9a9a", "torch for-loop": "#f2b134",
    "torch foreach": "#e08600", "torch fused": "#8a5a00", "torch compile": "#c98bd9", "DeepSpeed": "#1460c4",
    "optax jit": "#12883e", "bitsandbytes": "#0a9aa8", "torchao": "#7a3fd0", "FlashOptim": "#c4419a",
}  # fmt: skip
STORAGES = {
    "f32": "#111111", "bf16": "#1460c4", "split": "#0a9aa8", "8bit": "#e08600", "split_8bit": "#7a3fd0",
    "bf16_8bit": "#d63a9b", "bf16_kahan": "#7fb3ee", "mixed_bf16": "#9a9a9a", "mixed_f16": "#c4b08a", "f64": "#5c4033",
}  # fmt: skip
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 13, "axes.titlesize": 16, "axes.labelsize": 13, "legend.fontsize": 12,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6, "axes.titlepad": 14,
}  # fmt: skip


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the pictures for which a run has records and return their paths."""
    drawn = []
    for name, picture in (("bytes", _bytes), ("sizes", _sizes), ("tensors", _tensors), ("shares", _shares)):
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(14.5 if name == "shares" else 12.5, 7), layout="constrained")
            if not picture(figure.subplots(), results.records):
                continue
            figure.supxlabel(_caption(results), x=0.01, horizontalalignment="left", fontsize=10, color="#666666")
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=110, metadata={"Software": None})
    return drawn


def _caption(results: Results) -> str:
    run, machine, device = results.runs[0], results.machine, results.device
    where = device["name"] if device else f"{machine['cpu']}, {machine['cores']} cores"
    return f"{where}, {run['date'][:10]}, fastopt {run['commit'] or ''}"


def _largest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with the size and number of threads that most records larger than the cache have."""
    timed = [r for r in records if r["seconds"].get("fastopt") and r["share"] and beyond_cache(r)]
    sizes = [(r["case"]["size"], r["case"]["threads"]) for r in timed]
    common = max(set(sizes), key=lambda s: (sizes.count(s), s), default=None)
    return [r for r, size in zip(timed, sizes, strict=True) if size == common]


def _bytes(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time by the bytes that a step reads and writes: all rules and storages, peers, and the ceiling as a line.

    Each time is scaled by the ceiling measured in its own rounds, as in the tables, so that one line is right for all.
    """
    found = _largest([r for r in records if r["part"] in ("rules", "storages", "chosen")])
    if not found:
        return False
    n = case_of(found[0]).elements
    rate = float(np.median([r["traffic"] / r["seconds"]["ceiling"][1] for r in found]))
    most = max(r["traffic"] / n for r in found)
    x = np.array([0, most * 1.1])
    limit = 2.3 * most * n / rate * 1e3
    axes.fill_between(x, 0, x * n / rate * 1e3, color="#000000", alpha=0.05, linewidth=0)
    label = f"memory ceiling, {rate / 1e9:.0f} GB/s"
    axes.plot(x, x * n / rate * 1e3, color=COLOURS["ceiling"], linewidth=2, label=label)

    def milliseconds(r: dict[str, Any], times: float = 1.0) -> float:
        return times * r["traffic"] / rate / r["share"][1] * 1e3

    off_scale: dict[str, float] = {}
    for name in [name for name in COLOURS if any(name in r["versus"] for r in found)]:
        shown = [r for r in found if name in r["versus"] and r["case"]["rule"] in STORAGE_RULES]
        points = [(r["traffic"] / n, milliseconds(r, r["versus"][name][1])) for r in shown]
        above = [y for _, y in points if y >= limit]
        if above:
            off_scale[name] = min(above)
        inside = [point for point in points if point[1] < limit]
        if inside:
            axes.plot(*zip(*inside, strict=True), "D", color=COLOURS[name], markersize=7, alpha=0.8, label=name)
    for plain, marker, label in ((True, "o", "fastopt, float32"), (False, "s", "fastopt, other storages")):
        points = [(r["traffic"] / n, milliseconds(r)) for r in found if (r["case"]["storage"] == "f32") is plain]
        if points:
            face = COLOURS["fastopt"] if plain else "white"
            style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": COLOURS["fastopt"]}
            axes.plot(
                *zip(*points, strict=True), marker, markersize=8, markeredgewidth=2, zorder=5, label=label, **style
            )
    adams = {r["case"]["storage"]: (r["traffic"] / n, milliseconds(r)) for r in found if r["case"]["rule"] == _NAMED}
    _name_points(axes, {f"AdamW {storage}": at for storage, at in adams.items()}, x[1], limit)
    axes.set(xlim=(0, x[1]), ylim=(0, limit), xlabel="bytes read and written per parameter and step")
    axes.set(ylabel=f"milliseconds per step, {case_of(found[0]).size} parameters")
    axes.set_title("Time per step by the bytes that it reads and writes")
    if off_scale:
        ordered = sorted(off_scale.items(), key=lambda item: item[1])
        note = "off the scale: " + ", ".join(f"{name} from {t:,.0f} ms" for name, t in ordered)
        text = "\n".join(textwrap.wrap(note, 70))
        axes.text(0.015, 0.98, text, transform=axes.transAxes, fontsize=10.5, va="top", color="#555555")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


_NAMED = "adam-decoupled"


def _name_points(axes: Axes, points: dict[str, tuple[float, float]], width: float, height: float) -> None:
    """Write names above points and to their left, higher if another name is in the way."""
    placed: list[tuple[float, float]] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        at = [x - 0.015 * width, y + 0.07 * height]
        while any(abs(at[0] - x0) < 0.17 * width and abs(at[1] - y0) < 0.04 * height for x0, y0 in placed):
            at[1] += 0.01 * height
        placed.append((at[0], at[1]))
        line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(name, (x, y), (at[0], at[1]), fontsize=11, ha="right", arrowprops=line, zorder=6)


def _sizes(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time by size on logarithmic axes, with the spread as a band."""
    found = [r for r in records if r["part"] in ("sizes", "chosen") and r["seconds"].get("fastopt")]
    found = _common(found, lambda c: (c.rule, c.storage, c.threads, len(c.tensors)))
    if len(found) < 2:
        return False
    found.sort(key=lambda r: case_of(r).elements)
    _lines(axes, found, lambda r: case_of(r).elements)
    large = [r for r in found if beyond_cache(r)]
    if large:
        rate = float(np.median([r["traffic"] / r["seconds"]["ceiling"][1] for r in large]))
        sizes = np.array([max(case_of(found[0]).elements, 1e4), case_of(found[-1]).elements])
        each = large[0]["traffic"] / case_of(large[0]).elements
        line: dict[str, Any] = {"color": COLOURS["ceiling"], "linestyle": (0, (4, 2)), "linewidth": 1.6, "zorder": 1}
        axes.plot(sizes, sizes * each / rate, label=f"memory ceiling,\n{rate / 1e9:.0f} GB/s", **line)
    one = case_of(found[0])
    axes.set(xlabel="parameters of one tensor", ylabel="time per step")
    axes.set_title(f"Time per step by size: {one.rule}, {one.storage}, {one.runs_on}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


def _tensors(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time by the number of small tensors on logarithmic axes."""
    found = [r for r in records if r["part"] in ("tensors", "chosen") and r["seconds"].get("fastopt")]
    found = [r for r in found if case_of(r).elements / len(case_of(r).tensors) < 1e5]
    found = _common(found, lambda c: (c.rule, c.storage, c.threads, c.size.partition("x")[2]))
    if len(found) < 2:
        return False
    found.sort(key=lambda r: len(case_of(r).tensors))
    _lines(axes, found, lambda r: len(case_of(r).tensors))
    one = case_of(found[0])
    each = one.size.partition("x")[2].replace("-", " to ")
    axes.set(xlabel=f"number of tensors, {each} parameters each", ylabel="time per step")
    axes.set_title(f"Time per step on many small tensors: {one.rule}, {one.storage}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


def _common(records: list[dict[str, Any]], key: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Return the records with the most frequent key, one for each size."""
    keys = [key(case_of(r)) for r in records]
    most = max(set(keys), key=lambda k: (keys.count(k), str(k)), default=None)
    by_size = {r["case"]["size"]: r for r, k in zip(records, keys, strict=True) if k == most}
    return list(by_size.values())


def _lines(axes: Axes, records: list[dict[str, Any]], x: Callable[[dict[str, Any]], int]) -> None:
    """Draw a line with its spread for fastopt and each peer."""
    names = [n for n in COLOURS if n != "ceiling" and any(n in r["seconds"] for r in records)]
    ends = {}
    for name in names:
        points = [(x(r), *r["seconds"][name]) for r in records if name in r["seconds"]]
        at, low, median, high = (np.array(column) for column in zip(*points, strict=True))
        ours = name == "fastopt"
        axes.fill_between(at, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        width, size = (3.6, 8) if ours else (1.6, 4)
        style: dict[str, Any] = {
            "color": COLOURS[name],
            "linewidth": width,
            "markersize": size,
            "zorder": 5 if ours else 3,
        }
        ends[name] = median[-1]
        axes.plot(at, median, "o-", label=name, **style)
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _count(v)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: duration(v).replace(".00", "").replace(".0", "")))
    axes.yaxis.set_minor_locator(NullLocator())


def _count(value: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:g} {unit}"
    return f"{value:g}"


def _shares(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw the share of the ceiling as bars: a group for each rule, a bar for each storage."""
    found = _largest([r for r in records if r["part"] in ("rules", "storages", "chosen")])
    at = {(r["case"]["rule"], r["case"]["storage"]): r for r in found}
    rules: Sequence[str] = [
        n for n in dict.fromkeys((*STORAGE_RULES, *MAIN, *(r for r, _ in at))) if any(n == r for r, _ in at)
    ]
    stored = [n for n in rules if n in STORAGE_RULES]
    others = [n for n in rules if n in MAIN and n not in STORAGE_RULES]
    rules = (stored + others) or rules[:12]
    storages = [s for s in STORAGES if any((r, s) in at for r in rules)]
    if not rules:
        return False
    position, ticks = 0.0, []
    drawn: set[str] = set()
    for rule in rules:
        measured = [s for s in storages if (rule, s) in at]
        for k, storage in enumerate(measured):
            low, median, high = at[rule, storage]["share"]
            colour = STORAGES[storage]
            label = storage if storage not in drawn else None
            drawn.add(storage)
            axes.bar(position + k, median, 0.86, color=colour, label=label)
            axes.errorbar(
                position + k, median, [[median - low], [high - median]], color="#555555", linewidth=1.2, capsize=2
            )
            axes.text(
                position + k, 0.02, f"{median:.0%}", rotation=90, ha="center", va="bottom", color="white", fontsize=10
            )
        ticks.append((position + (len(measured) - 1) / 2, rule.replace("-", "\n")))
        position += max(len(measured), 2.5) + 0.9
    axes.axhline(1, color=COLOURS["ceiling"], linewidth=2, zorder=0)
    axes.text(position - 0.5, 1.005, "ceiling", ha="right", va="bottom", color=COLOURS["ceiling"])
    axes.set_xticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=10)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(ylabel="share of the ceiling", xlim=(-0.8, position - 0.4))
    axes.set_title(f"Share of the memory ceiling, {case_of(found[0]).size} parameters, {case_of(found[0]).runs_on}")
    axes.legend(title="storage", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, alignment="left")
    return True
