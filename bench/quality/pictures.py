"""The pictures of docs/storage.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastopt.bench.quality.tables import share
from fastopt.bench.quality.training import against_f32

COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"]  # Okabe & Ito's, for the colour-blind too
STYLE: dict[Any, Any] = {
    "font.size": 13, "axes.titlesize": 14, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 12,
}  # fmt: skip


def draw(run: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the pictures of docs/storage.md from one run's results."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with mpl.rc_context(STYLE):
        for name, needs, draw_one in (
            ("moments", ("moments",), draw_moments),
            ("training", ("digits", "text"), draw_training),
            ("rounding", ("rounding",), draw_rounding),
        ):
            if all(part in run["results"] for part in needs):
                figure = Figure(figsize=(13, 5), layout="constrained")
                draw_one(figure, run["results"])
                made.append(folder / f"storage-{name}.png")
                figure.savefig(made[-1], dpi=110)
    return made


def draw_moments(figure: Any, found: Mapping[str, Any]) -> None:
    """Draw the ratio of √v to float32's from the 1 % to the 99 % quantile, a panel for each σ."""
    rows = [r for r in found["moments"] if r["stream"] == "mean 0"]
    codes = list(dict.fromkeys(r["code"] for r in rows))
    panels = figure.subplots(1, 3, sharey=True, sharex=True)
    for axes, sigma in zip(panels, sorted({r["sigma"] for r in rows}), strict=True):
        axes.axvspan(1 / 1.5, 1.5, color="#dddddd", zorder=0)
        for r in (r for r in rows if r["sigma"] == sigma):
            k = codes.index(r["code"])
            low, middle, high = (max(q, 0.1) for q in r["v"]["quantiles"])
            axes.plot([low, high], [k, k], color=COLOURS[1 + k], linewidth=6, solid_capstyle="butt")
            axes.plot(middle, k, "o", color="white", markeredgecolor=COLOURS[1 + k], markeredgewidth=2, markersize=9)
            if r["v"]["zeros"]:
                axes.text(0.105, k - 0.32, f"{share(r['v']['zeros'])} are 0", fontsize=12, color=COLOURS[1 + k])
        axes.set(xscale="log", title=f"σ = {sigma:g}", yticks=range(len(codes)), yticklabels=codes, xlim=(0.1, 4))
        axes.set_xticks([0.1, 0.25, 0.5, 1, 2, 4], ["≤ 0.1", "0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_ylim(len(codes) - 0.5, -0.6)
    figure.supxlabel(
        "√v relative to float32: bar from 1 % to 99 % quantile, ring at the median; grey: within a factor of 1.5",
        fontsize=13,
    )
    figure.suptitle(
        "Second moments, β₂ = 0.999; the scales of a tile's gradients are log-normal(σ)", x=0.01, ha="left", fontsize=15
    )


def draw_training(figure: Any, found: Mapping[str, Any]) -> None:
    """Draw each preset's paired difference in validation loss, a dot for each seed."""
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"digits": "Perceptron on digits", "text": "Transformer on characters"}
    for axes, (task, title) in zip(panels, titles.items(), strict=True):
        values = found[task]
        names, exact = list(values)[1:], np.array(values["f32"]["validation"])
        scale, spread = 100 / exact.mean(), exact.std(ddof=1) * 100 / exact.mean()
        axes.axvspan(-spread, spread, color="#dddddd", zorder=0)
        axes.axvline(0, color="#888888", linewidth=1)
        summary = against_f32(values, "validation")
        for k, name in enumerate(names):
            of = summary[name]
            colour = COLOURS[2] if of["within"] else COLOURS[1]
            off = (np.array(values[name]["validation"]) - exact) * scale
            axes.plot(off, np.full(off.size, k), "o", color=colour, alpha=0.35, markersize=6)
            shape = "D" if of["within"] else "s"
            axes.errorbar(
                of["difference"] * scale, k, xerr=of["error"] * scale, fmt=shape, color=colour, capsize=5, markersize=7
            )
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), title=title)
        axes.set_xlabel("validation loss minus float32's of the same seed, %")
        axes.grid(axis="x", alpha=0.3)
    note = "◆ mean and its standard error, • one seed; grey: float32's standard deviation; orange squares: outside"
    figure.suptitle(note, x=0.01, ha="left", fontsize=13)


def draw_rounding(figure: Any, found: Mapping[str, Any]) -> None:
    """Draw a parameter with tiny steps and a second moment over time: the mean and 5 % to 95 % of the elements."""
    left, right = figure.subplots(1, 2)
    styles = {"f32": "-", "bf16": "-", "bf16_sr": "-", "bf16_kahan": "--", "split": ":", "uf8": "--"}
    for axes, part in ((left, "pushed"), (right, "decayed")):
        for name, path in found["rounding"][part].items():
            t, mean, low, high = np.array(path).T
            colour = COLOURS[list(styles).index(name)]
            width = 5 if name == "f32" else 2.5
            axes.plot(t, mean, styles[name], color=colour, label=name, linewidth=width, alpha=0.45 if width == 5 else 1)
            if name in ("bf16_sr", "uf8") and (part == "pushed" or name == "uf8"):
                axes.fill_between(t, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set_title("A parameter from 1.0, moved by 0.0001 per step")
    right.set_title("v while gradients drop from 1 to 0.1")
    right.set_yscale("log")
    right.set_ylabel("mean of v (band: 5 % to 95 % of uf8's)")
    left.set_ylabel("mean (band: 5 % to 95 % of bf16_sr's)")
