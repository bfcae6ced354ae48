"""Four pictures of a run, drawn without a display: bytes against time, time against size, small tensors, shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from fastopt.bench.cases import MAIN, PICTURED, STORED
from fastopt.bench.record import Kept
from fastopt.bench.report import beyond_cache, case_of, duration

COLOURS = {
    "fastopt": "#d1341f", "ceiling": "#333333", "NumPy": "#9a9a9a", "torch for-loop": "#f2b134",
    "torch foreach": "#e08600", "torch fused": "#8a5a00", "torch compile": "#c98bd9", "DeepSpeed": "#1460c4",
    "optax jit": "#12883e", "bitsandbytes": "#0a9aa8", "torchao": "#7a3fd0",
}  # fmt: skip
STORAGES: dict[str, str] = dict(
    zip(PICTURED, ("#111111", "#1460c4", "#0a9aa8", "#e08600", "#7a3fd0", "#d63a9b"), strict=True)
)
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 13, "axes.titlesize": 16, "axes.labelsize": 13, "legend.fontsize": 12,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6, "axes.titlepad": 14,
}  # fmt: skip


def draw(kept: Kept, folder: Path) -> list[Path]:
    """Draw the pictures that a run has the records for, and give their files."""
    drawn = []
    for name, picture in (("bytes", _bytes), ("sizes", _sizes), ("tensors", _tensors), ("shares", _shares)):
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(12.5, 7), layout="constrained")
            if not picture(figure.subplots(), kept.records):
                continue
            figure.supxlabel(_measured(kept), x=0.01, horizontalalignment="left", fontsize=10, color="#666666")
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], dpi=110, metadata={"Software": None})
    return drawn


def _measured(kept: Kept) -> str:
    run, machine = kept.runs[0], kept.machine
    return f"{machine['cpu']}, {machine['cores']} cores, {run['date'][:10]}, fastopt {run['commit'] or ''}"


def _largest(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the records of the size and threads that most records beyond the cache have."""
    timed = [r for r in records if r["seconds"].get("fastopt") and r["share"] and beyond_cache(r)]
    sizes = [(r["case"]["size"], r["case"]["threads"]) for r in timed]
    common = max(set(sizes), key=lambda s: (sizes.count(s), s), default=None)
    return [r for r, size in zip(timed, sizes, strict=True) if size == common]


def _bytes(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time against the bytes that a step moves: all rules and storages, peers, and the ceiling as a line."""
    found = _largest([r for r in records if r["part"] in ("rules", "storages", "chosen")])
    if not found:
        return False
    n = case_of(found[0]).elements
    rate = float(np.median([r["traffic"] / r["seconds"]["ceiling"][1] for r in found]))
    most = max(r["traffic"] / n for r in found)
    x = np.array([0, most * 1.12])
    axes.fill_between(x, 0, x * n / rate * 1e3, color="#000000", alpha=0.05, linewidth=0)
    axes.plot(
        x, x * n / rate * 1e3, color=COLOURS["ceiling"], linewidth=2, label=f"memory ceiling, {rate / 1e9:.0f} GB/s"
    )
    limit = 2.6 * most * n / rate * 1e3
    beside: dict[str, list[tuple[float, float]]] = defaultdict(list)
    outside: dict[str, float] = {}
    for r in found:
        for name in r["versus"]:
            time = r["seconds"][name][1] * 1e3
            if time < limit:
                beside[name].append((r["traffic"] / n, time))
            else:
                outside[name] = min(time, outside.get(name, np.inf))
    for name, points in beside.items():
        axes.plot(*zip(*points, strict=True), "D", color=COLOURS.get(name), markersize=6, alpha=0.75, label=name)
    plain = [r for r in found if r["case"]["storage"] == "f32"]
    stored = [r for r in found if r["case"]["storage"] != "f32"]
    for group, marker, label in ((plain, "o", "fastopt, float32"), (stored, "s", "fastopt, other storages")):
        points = [(r["traffic"] / n, r["seconds"]["fastopt"][1] * 1e3) for r in group]
        if points:
            face = COLOURS["fastopt"] if marker == "o" else "white"
            style: dict[str, Any] = {
                "markerfacecolor": face,
                "markeredgecolor": COLOURS["fastopt"],
                "markeredgewidth": 2,
            }
            axes.plot(*zip(*points, strict=True), marker, markersize=9, zorder=5, linestyle="", label=label, **style)
    adams = {r["case"]["storage"]: r for r in found if r["case"]["rule"] == "adam-decoupled"}
    for storage, r in adams.items():
        at = (r["traffic"] / n, r["seconds"]["fastopt"][1] * 1e3)
        axes.annotate(f"AdamW {storage}", at, (-9, 7), textcoords="offset points", fontsize=11, ha="right", zorder=6)
    axes.set(xlim=(0, x[1]), ylim=(0, limit), xlabel="bytes read and written, a parameter and step")
    axes.set(
        ylabel=f"milliseconds a step, {case_of(found[0]).size} parameters",
        title="A step's time is its bytes",
    )
    if outside:
        said = ", ".join(f"{name} from {t:,.0f} ms" for name, t in sorted(outside.items(), key=lambda x: x[1]))
        axes.text(
            0.01,
            0.985,
            f"above the picture: {said}",
            transform=axes.transAxes,
            fontsize=10.5,
            va="top",
            color="#555555",
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


def _sizes(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time against size, log–log, with the spread as a band."""
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
    axes.set(xlabel="parameters, one tensor", ylabel="time of a step")
    axes.set_title(f"From one parameter to {case_of(found[-1]).size}: {one.rule}, {one.storage}, {one.threads} threads")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


def _tensors(axes: Axes, records: list[dict[str, Any]]) -> bool:
    """Draw time against the number of small tensors, log–log."""
    found = [r for r in records if r["part"] in ("tensors", "chosen") and r["seconds"].get("fastopt")]
    found = [r for r in found if case_of(r).elements / len(case_of(r).tensors) < 1e5]
    found = _common(found, lambda c: (c.rule, c.storage, c.threads, c.size.partition("x")[2]))
    if len(found) < 2:
        return False
    found.sort(key=lambda r: len(case_of(r).tensors))
    _lines(axes, found, lambda r: len(case_of(r).tensors))
    one = case_of(found[0])
    each = one.size.partition("x")[2].replace("-", " to ")
    axes.set(xlabel=f"number of tensors, {each} parameters each", ylabel="time of a step")
    axes.set_title(f"Many small tensors are one pass: {one.rule}, {one.storage}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return True


def _common(records: list[dict[str, Any]], key: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Keep the records that share what most of them share, one for each size."""
    keys = [key(case_of(r)) for r in records]
    most = max(set(keys), key=lambda k: (keys.count(k), str(k)), default=None)
    kept = {r["case"]["size"]: r for r, k in zip(records, keys, strict=True) if k == most}
    return list(kept.values())


def _lines(axes: Axes, records: list[dict[str, Any]], x: Callable[[dict[str, Any]], int]) -> None:
    """Draw a line and its spread for fastopt and each peer."""
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
    """Draw the share of the ceiling as bars: rules along the axis, a bar for each storage."""
    found = _largest([r for r in records if r["part"] in ("rules", "storages", "chosen")])
    at = {(r["case"]["rule"], r["case"]["storage"]): r for r in found}
    rules: Sequence[str] = [
        n for n in dict.fromkeys((*STORED, *MAIN, *(r for r, _ in at))) if any(n == r for r, _ in at)
    ]
    stored = [n for n in rules if n in STORED]
    others = [n for n in rules if n in MAIN and n not in STORED]
    rules = (stored + others) or rules[:12]
    storages = [s for s in dict.fromkeys((*PICTURED, *(s for _, s in at))) if any((r, s) in at for r in rules)]
    if not rules:
        return False
    place, ticks = 0.0, []
    drawn: set[str] = set()
    for rule in rules:
        own = [s for s in storages if (rule, s) in at]
        for k, storage in enumerate(own):
            low, median, high = at[rule, storage]["share"]
            colour = STORAGES.get(storage, "#888888")
            label = storage if storage not in drawn else None
            drawn.add(storage)
            axes.bar(place + k, median, 0.86, color=colour, label=label)
            axes.errorbar(
                place + k, median, [[median - low], [high - median]], color="#555555", linewidth=1.2, capsize=2
            )
            axes.text(
                place + k, 0.02, f"{median:.0%}", rotation=90, ha="center", va="bottom", color="white", fontsize=10
            )
        ticks.append((place + (len(own) - 1) / 2, rule.replace("-", "\n")))
        place += len(own) + 0.9
    axes.axhline(1, color=COLOURS["ceiling"], linewidth=2, zorder=0)
    axes.text(place - 0.6, 1.01, "ceiling", ha="right", va="bottom", color=COLOURS["ceiling"])
    axes.set_xticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=11)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(ylabel="share of the memory ceiling for its bytes", xlim=(-0.8, place - 0.4))
    axes.set_title(f"How near to the ceiling, {case_of(found[0]).size} parameters, {case_of(found[0]).threads} threads")
    axes.legend(title="storage", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, alignment="left")
    return True
