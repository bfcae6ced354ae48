"""The pictures of the commands, drawn without a display and without changing matplotlib's global state."""

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
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fastopt import EWA
from fastopt.demo.digits import Run
from fastopt.demo.parsing import all_rules
from fastopt.demo.race import NEAR, Trajectory
from fastopt.demo.surfaces import SURFACES, Surface
from fastopt.errors import SettingError

COLOURS = {
    "sgd": "#d1341f", "momentum": "#1460c4", "rmsprop": "#12883e", "adam": "#111111", "adagrad": "#e08600",
    "adadelta": "#8a5a3b", "adamax": "#d63a9b", "nadam": "#0a9aa8", "radam": "#8a8f00", "lion": "#7a3fd0",
    "lamb": "#5f6b7a", "lars": "#a3195b", "stableadamw": "#2f4f4f", "mars": "#c1440e", "novograd": "#76b900",
    "prodigy": "#b8a000",
    "sgd + noise": "#f0806e",
}  # fmt: skip
SMOOTHING = 0.9
"""β of the exponentially weighted average that smooths loss curves, over about the last 10 steps."""

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 13, "axes.titlesize": 15, "axes.labelsize": 13, "legend.fontsize": 12,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
_DOTTED = 150  # lines of at most this many points show each point
_CONTOURS = LinearSegmentedColormap.from_list("contours", ["#ffffff", "#e9eff5", "#cad7e4", "#a9bccf"])
_TITLES = {
    "bowl": ("Elongated bowl", "SGD zigzags, momentum damps it"),
    "saddle": ("Saddle", "momentum leaves it earlier than SGD"),
    "rosenbrock": ("Rosenbrock", "momentum arrives, SGD is slow"),
    "beale": ("Beale", "momentum gathers speed on the plateau"),
}  # fmt: skip
"""A panel's title, and what is added to it if both SGD and momentum run."""
_ARRIVED = f"Arrived: from this step on f stays within {NEAR} of the minimum."
_COMPARED = "Momentum has the learning rate of SGD, and dampening=0 (heavy ball) except on the bowl."


def colour(name: str) -> str:
    """Return a rule's colour; for a rule without one, one of matplotlib's ten by its index among all rules."""
    return COLOURS[name] if name in COLOURS else f"C{list(all_rules()).index(name) % 10}"


def title(name: str) -> str:
    """Return the name of the rule's class."""
    return all_rules()[name].__name__ if name in all_rules() else name.replace("sgd", "SGD")


def diverged(run: Run) -> bool:
    """Say whether a loss of the run is not finite."""
    return not np.all(np.isfinite(run.losses))


def require_drawable(path: Path) -> None:
    """Raise a SettingError unless a picture can be written to this path; called before the work that it shows."""
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in kinds:
        expected = f"a name that ends in .png or in another of {', '.join(kinds)}"
        raise SettingError("pictures cannot be written with this file extension.", got=str(path), expected=expected)
    if not path.parent.is_dir():
        raise SettingError("the picture's folder does not exist.", got=str(path.parent))


def draw_training(runs: Mapping[str, Run], batches: int, path: Path) -> None:
    """Draw the loss and test accuracy of every run; `batches` is the number of steps of an epoch."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(16, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        notes = [*_draw_losses(left, runs, batches), *_draw_accuracies(right, runs)]
        for axes in (left, right):
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.set_xlim(0, 1.02 * len(next(iter(runs.values())).accuracies))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        heading = "test accuracy\nafter the last epoch"
        figure.legend(title=heading, loc="outside right upper", frameon=False, alignment="left")
        figure.supxlabel("  ".join(notes), x=0.01, horizontalalignment="left", fontsize=11, color="#444444")
        figure.savefig(path, dpi=150)


def _draw_losses(axes: Axes, runs: Mapping[str, Run], batches: int) -> list[str]:
    """Draw the loss of every batch, its average in bold, and a cross where a run diverges; return notes on that."""
    smooth = {name: EWA.over(run.losses, beta=SMOOTHING) for name, run in runs.items()}
    for k, (name, run) in enumerate(runs.items()):
        epochs = np.arange(1, len(run.losses) + 1) / batches
        axes.plot(epochs, run.losses, color=colour(name), alpha=0.2, linewidth=0.7)
        axes.plot(epochs, smooth[name], color=colour(name), linewidth=2, zorder=3, **_dots(run.losses, _width(k)))
        if diverged(run):
            last = np.flatnonzero(np.isfinite(smooth[name]))[-1:]
            axes.plot(epochs[last], smooth[name][last], color=colour(name), marker="X", markersize=13, zorder=4)
    every = np.concatenate([run.losses for run in runs.values()])
    low, high = _span(every, np.concatenate(list(smooth.values())))
    axes.set(yscale="log", xlabel="epoch", ylabel="cross-entropy of a batch", title="Training loss", ylim=(low, high))
    notes = [f"Loss: of every batch (faint), and averaged over about the last {EWA(SMOOTHING).window:.0f} (bold)."]
    if np.any((every < low) | (every > high) & np.isfinite(every)):
        notes.append("Faint lines are cut at the edges.")
    if any(map(diverged, runs.values())):
        notes.append("×: diverged.")
    return notes


def _span(every: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """Return limits of a logarithmic axis that include all averages, and values within a factor of ten of them."""
    every, smooth = (values[np.isfinite(values) & (values > 0)] for values in (every, smooth))
    if not len(smooth):
        return 0.1, 10.0
    low, high = max(every.min(), smooth.min() / 10), min(every.max(), smooth.max() * 10)
    margin = 1.2 * (high / low) ** 0.03
    return low / margin, high * margin


def _draw_accuracies(axes: Axes, runs: Mapping[str, Run]) -> list[str]:
    """Draw accuracies from 0 to 100 % on a scale that stretches the last percents; return a note on that."""
    for k, (name, run) in enumerate(runs.items()):
        marks, width = np.arange(1, len(run.accuracies) + 1), _width(k)
        label = f"{title(name)}  {run.accuracies[-1]:.1%}{', diverged' if diverged(run) else ''}"
        dots = _dots(run.accuracies, width)
        axes.plot(marks, run.accuracies, color=colour(name), linewidth=width, clip_on=False, label=label, **dots)
    axes.set_yscale("function", functions=(lambda a: -np.log10(1.01 - a), lambda s: 1.01 - 10.0**-s))
    axes.set(xlabel="epoch", ylabel="test images classified correctly", title="Test accuracy", ylim=(0, 1))
    axes.set_yticks([0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return ["Accuracy: the scale is stretched towards 100 %."]


def _width(k: int) -> float:
    """Return the width of line k. Later lines are narrower, so that all of several coinciding lines are visible."""
    return max(3.0 - 0.4 * k, 1.4)


def _dots(points: np.ndarray, width: float) -> dict[str, Any]:
    """Return the style of the points of a line: markers if they are few, a large marker for a single point."""
    size = max(width + 2, 4 * width / len(points))
    return {"marker": "o", "markersize": size, "markeredgewidth": 0} if len(points) <= _DOTTED else {}


def draw_race(races: Mapping[str, list[Trajectory]], path: Path) -> None:
    """Draw every surface with the paths of the rules, in four panels."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(18, 12), layout="constrained")
        compared = all({"sgd", "momentum"} <= {one.name for one in race} for race in races.values())
        for axes, (key, surface) in zip(figure.subplots(2, 2).flat, SURFACES.items(), strict=True):
            _draw_contours(axes, surface)
            for k, one in enumerate(races[key]):
                _draw_path(axes, one, width=_width(k))
            _draw_marks(axes, surface)
            _draw_arrivals(axes, races[key], surface)
            axes.set(title=": ".join(_TITLES[key] if compared else _TITLES[key][:1]), xlabel="x", ylabel="y")
            axes.set(xlim=surface.x_range, ylim=surface.y_range)
        marks = [
            Line2D([], [], linestyle="", label=label, **{**mark, "markersize": min(mark["markersize"], 16)})
            for label, mark in _MARKS.items()
        ]
        figure.legend(
            handles=marks,
            title=f"{_ARRIVED}  {_COMPARED}" if compared else _ARRIVED,
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
    "minimum": {"marker": "*", "markersize": 30, "color": "#ffd21f", "markeredgecolor": "black", "zorder": 4},
}


def _draw_contours(axes: Axes, surface: Surface) -> None:
    x, y = np.meshgrid(np.linspace(*surface.x_range, 400), np.linspace(*surface.y_range, 400))
    heights = np.log10(surface.f(x, y) - surface.f(*surface.minima[0]) + 1e-3)
    levels = np.linspace(heights.min(), heights.max(), 24)
    axes.contourf(x, y, heights, levels=levels, cmap=_CONTOURS)
    axes.contour(x, y, heights, levels=levels, colors="#6c8096", linewidths=0.4, linestyles="solid")


def _draw_path(axes: Axes, trajectory: Trajectory, width: float) -> None:
    """Draw a path and a mark at its end, in proportion to its width, so that marks at the same point are visible."""
    path, drawn = trajectory.path, colour(trajectory.name)
    axes.plot(*path.T, color=drawn, linewidth=width, solid_joinstyle="round", **_dots(path, width))
    mark: dict[str, Any] = {**_MARKS["after the last step"], "color": drawn, "markersize": 4 * width}
    axes.plot(*path[-1], **mark)


def _draw_marks(axes: Axes, surface: Surface) -> None:
    axes.plot(*surface.start, **_MARKS["start"])
    for minimum in surface.minima:
        axes.plot(*minimum, **_MARKS["minimum"])


def _draw_arrivals(axes: Axes, race: list[Trajectory], surface: Surface) -> None:
    """Write a legend beside the panel that says when each rule arrived and which paths leave the panel."""
    handles, ranges = [], (surface.x_range, surface.y_range)
    for one in race:
        label = f"{title(one.name)}  {'not yet' if one.arrived is None else one.arrived}"
        if not all(np.all((low <= z) & (z <= high)) for z, (low, high) in zip(one.path.T, ranges, strict=True)):
            label += "\n(leaves the panel)"
        handles.append(Line2D([], [], color=colour(one.name), linewidth=4, label=label))
    heading = f"arrived at step,\nof {len(race[0].path) - 1}"
    axes.legend(
        handles=handles, title=heading, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, alignment="left"
    )
