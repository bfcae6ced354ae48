"""The effect of rounding alone: steps far below a format's spacing, a decaying v, unsigned state of other rules."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality.storages import NEAREST, Tick, storage_of

UNSIGNED: list[tuple[str, Any, str]] = [
    ("Adam, v", fastopt.Adam(), "v"),
    ("Adam with AMSGrad, vmax", fastopt.Adam(amsgrad=True), "vmax"),
    ("RMSprop, v", fastopt.RMSprop(), "v"),
    ("Adagrad, v", fastopt.Adagrad(), "v"),
    ("Adadelta, u", fastopt.Adadelta(), "u"),
    ("Adamax, u", fastopt.Adamax(), "u"),
]
COMPARED = ["8bit", NEAREST, "bf16"]


def rules(steps: int, tick: Tick, n: int = 4096) -> list[dict[str, Any]]:
    """Compare the unsigned state of other rules with float32's after so many steps with standard normal gradients."""
    rows = []
    for shown, rule, buffer in UNSIGNED:
        random = np.random.default_rng(12)
        start = {"x": np.zeros(n, np.float32)}
        opts = {
            name: fastopt.Optimizer(rule, start, storage=storage_of(name, rule), backend="cpu")
            for name in ("f32", *COMPARED)
        }
        for _ in range(steps):
            g = random.standard_normal(n, dtype=np.float32)
            for opt in opts.values():
                opt.grads["x"][...] = g
                opt.step()
            tick()
        exact = opts["f32"].state(buffer)["x"].astype(np.float64)
        for name in COMPARED:
            found = opts[name].state(buffer)["x"].astype(np.float64)
            mean, quantiles = found.mean() / exact.mean(), np.quantile(found / exact, [0.01, 0.5, 0.99])
            rows.append({"of": shown, "storage": name, "mean": float(mean), "quantiles": quantiles.tolist()})
    return rows


PUSHED = ["f32", "bf16", "bf16_sr", "bf16_kahan", "split"]
DECAYED = ["f32", "bf16", "bf16_sr", "uf8"]
PUSH = 1e-4


def rounding(steps: int, tick: Tick, n: int = 4096) -> dict[str, Any]:
    """Decrease parameters from 1.0 by 1e-4 per step; let v grow with gradients of size 1, then decay with size 0.1."""
    every, found = max(steps // 100, 1), {"pushed": {}, "decayed": {}}

    def summary(values: np.ndarray) -> list[float]:
        return [float(np.mean(values)), *np.quantile(values, [0.05, 0.95]).tolist()]

    for name in PUSHED:
        start = {"x": np.ones(n, np.float32)}
        opt = fastopt.Optimizer(fastopt.SGD(lr=PUSH), start, storage={"p": name}, backend="cpu")
        opt.grads["x"][...] = 1
        path = []
        for t in range(1, steps + 1):
            opt.step()
            if t % every == 0:
                path.append([t, *summary(opt.master()["x"])])
            tick()
        found["pushed"][name] = path
    for name in DECAYED:
        start, random = {"x": np.zeros(n, np.float32)}, np.random.default_rng(11)
        opt = fastopt.Optimizer(fastopt.Adam(lr=0.0), start, storage={"v": name}, backend="cpu")
        path = []
        for t in range(1, 3 * steps + 1):
            size = np.float32(1 if t <= steps else 0.1)
            opt.grads["x"][...] = size * random.standard_normal(n, dtype=np.float32)
            opt.step()
            if t % every == 0:
                path.append([t, *summary(opt.state("v")["x"])])
            tick()
        found["decayed"][name] = path
    return found
