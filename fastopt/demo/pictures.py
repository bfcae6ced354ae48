"""The pictures, drawn without a display and without touching matplotlib's global state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from fastopt import EWA, RULES
from fastopt.demo.digits import Run
from fastopt.demo.race import Lane
from fastopt.demo.surfaces import SURFACES, Surface
from fastopt.errors import SettingError, explain

COLOURS = {
    "sgd": "#d1341f", "momentum": "#1460c4", "rmsprop": "#12883e", "adam": "#111111", "adagrad": "#e08600",
    "adadelta": "#8a5a3b", "adamax": "#d63a9b", "nadam": "#0a9aa8", "radam": "#8a8f00", "lion": "#7a3fd0",
    "sgd + noise": "#f0806e",
}  # fmt: skip
SMOOTHING = 0.9
"""β of the average that smooths loss curves: about the last 10 steps."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 13, "axes.titlesize": 15, "axes.labelsize": 13, "legend.fontsize": 12,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
_DOTTED = 150  # paths of up to so many points show each of them
_BESIDE = 6  # with more paths than this the legend stands beside the panel
_LAND = LinearSegmentedColormap.from_list("land", ["#ffffff", "#e9eff5", "#cad7e4", "#a9bccf"])
_TITLES = {
    "bowl": ("Elongated bowl", "SGD zigzags, momentum damps it"),
    "saddle": ("Saddle", "momentum is gone while SGD lingers"),
    "rosenbrock": ("Rosenbrock", "momentum gets round, SGD crawls"),
    "beale": ("Beale", "momentum gathers speed on the plateau"),
}  # fmt: skip
"""A panel's title, and the lesson that it adds where both SGD and momentum take part."""
_COMPARED = "Momentum has SGD's learning rate: in the averaged form on the bowl, as heavy ball elsewhere"


def title(name: str) -> str:
    """Spell a rule's name as its class does."""
    return RULES[name].__name__ if name in RULES else name.replace("sgd", "SGD")


def require_drawable(path: Path, where: str) -> None:
    """Raise a SettingError unless a picture can be written there, before any time is spent on what it shows."""
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in kinds:
        expected = f"a name that ends in .png, or in one of {', '.join(kinds)}"
        raise SettingError(explain(where, "this is no kind of picture.", got=str(path), expected=expected))
    if not path.parent.is_dir():
        raise SettingError(explain(where, "the picture's folder does not exist.", got=str(path.parent)))


def draw_training(runs: Mapping[str, Run], batches: int, path: Path) -> None:
    """Draw the loss and the test accuracy of every run into a PNG; `batches` are the steps of an epoch."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(14, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        smooth = {name: EWA.over(run.losses, beta=SMOOTHING) for name, run in runs.items()}
        for name, run in runs.items():
            epochs = np.arange(1, len(run.losses) + 1) / batches
            left.plot(epochs, run.losses, color=COLOURS[name], alpha=0.15, linewidth=0.7)
            left.plot(epochs, smooth[name], color=COLOURS[name], linewidth=2, zorder=3)
            marks = np.arange(1, len(run.accuracies) + 1)
            label = f"{title(name)}  {run.accuracies[-1]:.1%}"
            right.plot(marks, run.accuracies, color=COLOURS[name], linewidth=2, marker="o", markersize=5, label=label)
        left.set(yscale="log", xlabel="epoch", ylabel="cross-entropy of a batch", title="Training loss")
        left.set_ylim(*_span([values[np.isfinite(values)] for values in smooth.values()]))
        right.set(xlabel="epoch", ylabel="test images classified correctly", title="Test accuracy")
        lowest, last = min(run.accuracies.min() for run in runs.values()), [run.accuracies[-1] for run in runs.values()]
        right.set_ylim(max(lowest - 0.02, min(last) - 0.12, 0), 1)
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        right.legend(title="after the last epoch", loc="lower right", ncols=1 + (len(runs) > 5), alignment="left")
        for axes in (left, right):
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.set_xlim(0, len(next(iter(runs.values())).accuracies) + 0.3)
        figure.savefig(path, dpi=150)


def _span(curves: list[np.ndarray]) -> tuple[float, float]:
    """Give the limits of a log axis that has room for the curves and for most of the noise around them."""
    values = np.concatenate(curves)
    values = values[values > 0]
    return (values.min() / 4, values.max() * 1.5) if len(values) else (0.1, 10.0)


def draw_race(lanes: Mapping[str, list[Lane]], path: Path) -> None:
    """Draw every surface with the paths of its race into one PNG of four panels."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(15, 12), layout="constrained")
        compared = all({"sgd", "momentum"} <= {lane.name for lane in race} for race in lanes.values())
        for axes, (key, surface) in zip(figure.subplots(2, 2).flat, SURFACES.items(), strict=True):
            _draw_land(axes, surface)
            for k, lane in enumerate(lanes[key]):
                _draw_lane(axes, lane, width=max(3.0 - 0.4 * k, 1.4))
            _draw_marks(axes, surface)
            _draw_arrivals(axes, lanes[key])
            axes.set(title=": ".join(_TITLES[key] if compared else _TITLES[key][:1]), xlabel="x", ylabel="y")
            axes.set(xlim=surface.x_range, ylim=surface.y_range)
        marks = [Line2D([], [], linestyle="", label=label, **mark) for label, mark in _MARKS.items()]
        figure.legend(
            handles=marks,
            title=_COMPARED if compared else None,
            loc="outside lower center",
            ncols=len(marks),
            frameon=False,
        )
        figure.savefig(path, dpi=130)


_MARKS: dict[str, dict[str, Any]] = {
    "start": {"marker": "o", "markersize": 11, "color": "white", "markeredgecolor": "black", "zorder": 6},
    "after the last step": {
        "marker": "s",
        "markersize": 9,
        "color": "#777777",
        "markeredgecolor": "white",
        "zorder": 5,
    },
    "minimum": {"marker": "*", "markersize": 27, "color": "#ffd21f", "markeredgecolor": "black", "zorder": 4},
}


def _draw_land(axes: Axes, surface: Surface) -> None:
    x, y = np.meshgrid(np.linspace(*surface.x_range, 400), np.linspace(*surface.y_range, 400))
    heights = np.log10(surface.f(x, y) - surface.f(*surface.minima[0]) + 1e-3)
    levels = np.linspace(heights.min(), heights.max(), 24)
    axes.contourf(x, y, heights, levels=levels, cmap=_LAND)
    axes.contour(x, y, heights, levels=levels, colors="#6c8096", linewidths=0.4, linestyles="solid")


def _draw_lane(axes: Axes, lane: Lane, width: float) -> None:
    """Draw one path; of paths that coincide the later ones are narrower, so that all can be seen."""
    colour = COLOURS[lane.name]
    dots = {"marker": "o", "markersize": width + 2, "markeredgewidth": 0} if len(lane.path) <= _DOTTED else {}
    axes.plot(*lane.path.T, color=colour, linewidth=width, solid_joinstyle="round", **dots)
    mark: dict[str, Any] = {**_MARKS["after the last step"], "color": colour}
    axes.plot(*lane.path[-1], **mark)


def _draw_marks(axes: Axes, surface: Surface) -> None:
    axes.plot(*surface.start, **_MARKS["start"])
    for minimum in surface.minima:
        axes.plot(*minimum, **_MARKS["minimum"])


def _draw_arrivals(axes: Axes, lanes: list[Lane]) -> None:
    steps = len(lanes[0].path) - 1
    labels = [f"{title(lane.name)}  {'not yet' if lane.arrived is None else lane.arrived}" for lane in lanes]
    handles = [Line2D([], [], color=COLOURS[x.name], linewidth=4, label=y) for x, y in zip(lanes, labels, strict=True)]
    heading = f"arrived at step,\nof {steps}" if len(lanes) > _BESIDE else f"arrived at step, of {steps}"
    place: dict[str, Any] = (
        {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(lanes) > _BESIDE else {"loc": "best"}
    )
    axes.legend(handles=handles, title=heading, framealpha=0.85, alignment="left", **place)
