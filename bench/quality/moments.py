"""m, v and Adam's direction m̂ / (√v̂ + ε) as storages hold them, against float32's on the same stream of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality.storages import Tick
from fastopt.kernels.formats import TILE

STREAMS = [("mean 0", 0.5), ("mean 0", 1.0), ("mean 0", 2.0), ("mean s", 1.0)]
"""The mean of an element's gradients, and σ of the log-normal scales of the elements of a tile."""


class Kernels:
    """fastopt's own Adam. At parameters of zero and a learning rate of one a step leaves minus the direction."""

    def __init__(self, state: tuple[str, str], n: int):
        kept = dict(zip("mv", state, strict=True))
        self.opt = fastopt.Optimizer(fastopt.Adam(lr=1.0), {"x": np.zeros(n, np.float32)}, storage=kept, backend="cpu")

    def step(self, g: np.ndarray) -> None:
        """Take a step with gradients g."""
        self.opt.params["x"][...] = 0
        self.opt.grads["x"][...] = g
        self.opt.step()

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return m, v and the direction."""
        return self.opt.state("m")["x"], self.opt.state("v")["x"], -self.opt.params["x"]


class Peer:
    """Adam as peers compute it: decode m and v, compute in float32, step from the fresh ones, encode."""

    def __init__(self, encode: Callable[[Any, bool], Any], n: int):
        self.encode, self.t = encode, 0
        self.m = self.v = self.d = import_module("torch").zeros(n)

    def step(self, g: np.ndarray) -> None:
        """Take a step with gradients g."""
        given = import_module("torch").from_numpy(g)
        self.t += 1
        m = 0.9 * self.m + 0.1 * given
        v = 0.999 * self.v + 0.001 * (given * given)
        self.d = m / (1 - 0.9**self.t) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        self.m, self.v = self.encode(m, True), self.encode(v, False)

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return m, v and the direction."""
        return self.m.numpy(), self.v.numpy(), self.d.numpy()


def bitsandbytes() -> Callable[[Any, bool], Any]:
    """Return bitsandbytes' blockwise code as its CUDA optimizer computes it: the nearest entry of its own table.

    A sign that was lost moves by one entry. `quantize_blockwise` on the CPU is another encoder, which makes of every
    small value 1.6e-5 of the block's largest; it would show bitsandbytes worse than it is.
    """
    made, torch = import_module("bitsandbytes.functional"), import_module("torch")
    tables = {signed: made.create_dynamic_map(signed) for signed in (True, False)}
    middles = {signed: (table[1:] + table[:-1]) / 2 for signed, table in tables.items()}

    def encode(x: Any, signed: bool) -> Any:
        blocks, entries = x.view(-1, TILE), tables[signed]
        scale = blocks.abs().amax(1, keepdim=True)
        index = torch.bucketize(blocks / torch.where(scale > 0, scale, 1.0), middles[signed])
        if signed:
            lost = torch.signbit(entries[index]) != torch.signbit(blocks)
            index = torch.where(lost, torch.where(blocks > 0, index + 1, index - 1), index)
        return (entries[index] * scale).view(-1)

    return encode


def torchao() -> Callable[[Any, bool], Any]:
    """Return torchao's 8-bit optimizer state."""
    made, torch = import_module("torchao.optim.quant_utils"), import_module("torch")
    tables = {signed: torch.tensor(made.create_dynamic_map(signed)) for signed in (True, False)}

    def encode(x: Any, signed: bool) -> Any:
        scaled, scale = made.scale_tensor(x, TILE)
        codes = made.quantize_8bit_with_qmap(scaled, tables[signed])
        return made.dequant_with_qmap(codes, tables[signed], scale)

    return encode


def contestants(n: int) -> dict[str, Any]:
    """Return each way to keep m and v by name, float32 first; peers that are not installed are left out."""
    made: dict[str, Any] = {"f32": Kernels(("f32", "f32"), n), "f8 and uf8": Kernels(("f8", "uf8"), n)}
    for name, peer in (("bitsandbytes", bitsandbytes), ("torchao", torchao)):
        try:
            made[name] = Peer(peer(), n)
        except ImportError:
            continue
    return made | {name: Kernels((name, name), n) for name in ("bf16", "bf16_sr")}


def moments(steps: int, tick: Tick, tiles: int = 64) -> list[dict[str, Any]]:
    """Follow every contestant over each stream; v is read three times in the last third, m and the direction often."""
    rows = []
    for stream, sigma in STREAMS:
        random, n = np.random.default_rng(round(10 * sigma) + 7), tiles * TILE
        s = np.exp(sigma * random.standard_normal(n)).astype(np.float32)
        given, often = contestants(n), steps // 8
        read: dict[str, dict[str, list]] = {name: {"m": [], "v": [], "d": []} for name in given}
        for t in range(1, steps + 1):
            noise = random.standard_normal(n, dtype=np.float32)
            g = s * (np.float32(0.05) * noise + 1 if stream == "mean s" else noise)
            for name, one in given.items():
                one.step(g)
                rarely, often_now = t in (steps * 2 // 3, steps * 5 // 6, steps), t > steps - often and t % 2 == 0
                if rarely or often_now:
                    m, v, d = (x.copy() for x in one.read())
                    read[name]["v"] += [v] if rarely else []
                    read[name]["m"] += [m] if often_now else []
                    read[name]["d"] += [d] if often_now else []
            tick()
        exact = {b: np.array(a, np.float64) for b, a in read["f32"].items()}
        for name in list(given)[1:]:
            kept = {b: np.array(a, np.float64) for b, a in read[name].items()}
            rows.append({"stream": stream, "sigma": sigma, "code": name, **compared(kept, exact)})
    return rows


def compared(kept: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Compare what was kept with float32: √v as a ratio; m and d in units of the element's own rms over time."""
    ratio = np.sqrt(kept["v"] / exact["v"])
    found: dict[str, Any] = {
        "v": {
            "within": float(np.mean((ratio > 1 / 1.5) & (ratio < 1.5))),
            "zeros": float(np.mean(kept["v"] == 0)),
            "quantiles": np.quantile(ratio, [0.01, 0.5, 0.99]).tolist(),
        }
    }
    for b in ("m", "d"):
        rms = np.sqrt(np.mean(exact[b] ** 2, axis=0))
        off = (kept[b] - exact[b]) / rms
        error, bias = np.sqrt(np.mean(off**2, axis=0)), np.mean(off, axis=0)
        found[b] = {
            "error": np.quantile(error, [0.5, 0.99]).tolist(),
            "bias": float(np.mean(bias)),
            "bias_99": float(np.quantile(np.abs(bias), 0.99)),
            "zeros": float(np.mean(kept[b] == 0)),
            "size": float(np.sqrt(np.mean(kept[b] ** 2) / np.mean(exact[b] ** 2))),
        }
    return found
