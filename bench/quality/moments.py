"""Errors of m, v and Adam's direction m̂ / (√v̂ + ε) in a storage, relative to float32 on the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality.storages import Tick
from fastopt.kernels.formats import TILE

STREAMS = [("mean 0", 0.5), ("mean 0", 1.0), ("mean 0", 2.0), ("mean s", 1.0)]
"""The mean of an element's gradients (s is the element's scale), and σ of the log-normal scales in a tile."""


class FastoptAdam:
    """fastopt's Adam. With parameters of 0 and a learning rate of 1, a step sets them to minus the direction."""

    def __init__(self, state: tuple[str, str], n: int):
        storage, start = dict(zip("mv", state, strict=True)), {"x": np.zeros(n, np.float32)}
        self.opt = fastopt.Optimizer(fastopt.Adam(lr=1.0), start, storage=storage, backend="cpu")

    def step(self, g: np.ndarray) -> None:
        """Take a step with gradients g."""
        self.opt.params["x"][...] = 0
        self.opt.grads["x"][...] = g
        self.opt.step()

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return m, v and the direction."""
        return self.opt.state("m")["x"], self.opt.state("v")["x"], -self.opt.params["x"]


class PeerAdam:
    """Adam as peers compute it: decode m and v, update them in float32, step with the new values, encode them."""

    def __init__(self, encode: Callable[[Any, bool], Any], n: int):
        self.encode, self.t = encode, 0
        self.m = self.v = self.d = import_module("torch").zeros(n)

    def step(self, g: np.ndarray) -> None:
        """Take a step with gradients g."""
        gradient = import_module("torch").from_numpy(g)
        self.t += 1
        m = 0.9 * self.m + 0.1 * gradient
        v = 0.999 * self.v + 0.001 * (gradient * gradient)
        self.d = m / (1 - 0.9**self.t) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        self.m, self.v = self.encode(m, True), self.encode(v, False)

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return m, v and the direction."""
        return self.m.numpy(), self.v.numpy(), self.d.numpy()


def bitsandbytes() -> Callable[[Any, bool], Any]:
    """Return bitsandbytes' blockwise encoding as its CUDA optimizer computes it: the nearest entry of its table.

    If the nearest entry has the wrong sign, the next one is used. `quantize_blockwise` on the CPU is another encoder:
    it encodes every small value as 1.6e-5 of the block's maximum, so bitsandbytes would look worse than it is.
    """
    made, torch = import_module("bitsandbytes.functional"), import_module("torch")
    tables = {signed: made.create_dynamic_map(signed) for signed in (True, False)}
    middles = {signed: (table[1:] + table[:-1]) / 2 for signed, table in tables.items()}

    def encode(x: Any, signed: bool) -> Any:
        blocks, entries = x.view(-1, TILE), tables[signed]
        scale = blocks.abs().amax(1, keepdim=True)
        index = torch.bucketize(blocks / torch.where(scale > 0, scale, 1.0), middles[signed])
        if signed:
            wrong_sign = torch.signbit(entries[index]) != torch.signbit(blocks)
            index = torch.where(wrong_sign, torch.where(blocks > 0, index + 1, index - 1), index)
        return (entries[index] * scale).view(-1)

    return encode


def torchao() -> Callable[[Any, bool], Any]:
    """Return the encoding of torchao's 8-bit optimizer state."""
    made, torch = import_module("torchao.optim.quant_utils"), import_module("torch")
    tables = {signed: torch.tensor(made.create_dynamic_map(signed)) for signed in (True, False)}

    def encode(x: Any, signed: bool) -> Any:
        scaled, scale = made.scale_tensor(x, TILE)
        codes = made.quantize_8bit_with_qmap(scaled, tables[signed])
        return made.dequant_with_qmap(codes, tables[signed], scale)

    return encode


def contestants(n: int) -> dict[str, Any]:
    """Return an Adam for each format of m and v by name, float32 first; without peers that are not installed."""
    made: dict[str, Any] = {"f32": FastoptAdam(("f32", "f32"), n), "f8 and uf8": FastoptAdam(("f8", "uf8"), n)}
    for name, peer in (("bitsandbytes", bitsandbytes), ("torchao", torchao)):
        try:
            made[name] = PeerAdam(peer(), n)
        except ImportError:
            continue
    return made | {name: FastoptAdam((name, name), n) for name in ("bf16", "bf16_sr")}


def moments(steps: int, tick: Tick, tiles: int = 64) -> list[dict[str, Any]]:
    """Run every contestant on each stream; sample v three times from 2/3 on, m and the direction in the last 1/8."""
    rows = []
    for stream, sigma in STREAMS:
        random, n = np.random.default_rng(round(10 * sigma) + 7), tiles * TILE
        s = np.exp(sigma * random.standard_normal(n)).astype(np.float32)
        adams, last = contestants(n), steps // 8
        read: dict[str, dict[str, list]] = {name: {"m": [], "v": [], "d": []} for name in adams}
        for t in range(1, steps + 1):
            noise = random.standard_normal(n, dtype=np.float32)
            g = s * (np.float32(0.05) * noise + 1 if stream == "mean s" else noise)
            for name, one in adams.items():
                one.step(g)
                sample_v, sample_m = t in (steps * 2 // 3, steps * 5 // 6, steps), t > steps - last and t % 2 == 0
                if sample_v or sample_m:
                    m, v, d = (x.copy() for x in one.read())
                    read[name]["v"] += [v] if sample_v else []
                    read[name]["m"] += [m] if sample_m else []
                    read[name]["d"] += [d] if sample_m else []
            tick()
        exact = {b: np.array(a, np.float64) for b, a in read["f32"].items()}
        for name in list(adams)[1:]:
            found = {b: np.array(a, np.float64) for b, a in read[name].items()}
            rows.append({"stream": stream, "sigma": sigma, "code": name, **errors(found, exact)})
    return rows


def errors(found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the errors relative to float32: √v as a ratio; m and d in units of the element's rms over time."""
    ratio = np.sqrt(found["v"] / exact["v"])
    result: dict[str, Any] = {
        "v": {
            "within": float(np.mean((ratio > 1 / 1.5) & (ratio < 1.5))),
            "zeros": float(np.mean(found["v"] == 0)),
            "quantiles": np.quantile(ratio, [0.01, 0.5, 0.99]).tolist(),
        }
    }
    for b in ("m", "d"):
        rms = np.sqrt(np.mean(exact[b] ** 2, axis=0))
        off = (found[b] - exact[b]) / rms
        error, bias = np.sqrt(np.mean(off**2, axis=0)), np.mean(off, axis=0)
        result[b] = {
            "error": np.quantile(error, [0.5, 0.99]).tolist(),
            "bias": float(np.mean(bias)),
            "bias_99": float(np.quantile(np.abs(bias), 0.99)),
            "zeros": float(np.mean(found[b] == 0)),
            "size": float(np.sqrt(np.mean(found[b] ** 2) / np.mean(exact[b] ** 2))),
        }
    return result
