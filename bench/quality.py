"""What a storage costs in quality: its moments beside bitsandbytes' and torchao's, training, and rounding by itself.

`python -m fastopt.bench.quality` takes some 25 minutes on one thread, `--quick` one; `--show` measures nothing and
writes the tables of docs/storage.md and its pictures anew from a file of results.

  moments   m, v and Adam's direction m̂ / (√v̂ + ε) against float32's on the same stream of gradients, whose scales
            within a tile of 256 are log-normal(σ): fastopt's own kernels, and the peers' codes
  training  a perceptron on handwritten digits and a small transformer on characters, under every preset with the same
            seeds; also float32 from a start disturbed by a millionth, which shows what differences mean nothing
  rules     what other rules keep that is never negative, after gradients of 1
  rounding  a parameter that receives steps far below its format's spacing, and a v that has to grow and to decay
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import fastopt
from fastopt.bench import record
from fastopt.kernels.program import parameters, plan
from fastopt.kernels.storage import TILE

DOCS = record.FOLDER.parent.parent / "docs"
PACKAGES = ("bitsandbytes", "torchao", "scikit-learn", "ml_dtypes")
NEAREST = "bf16, all to nearest"  # no preset: to compare with
SHOWN = ["f32", NEAREST, *(name for name in fastopt.PRESETS if name not in ("f32", "f64"))]
DISTURBED = "f32, start disturbed"
STREAMS = [("mean 0", 0.5), ("mean 0", 1.0), ("mean 0", 2.0), ("mean s", 1.0)]
Tick: TypeAlias = Callable[[], object]


def stored(name: str, rule: Any) -> Any:
    """Give the storage that goes by a name here: a preset, or NEAREST."""
    return dict.fromkeys(parameters(rule).buffers, "bf16") if name == NEAREST else name


def work(quick: bool) -> dict[str, tuple[int, Callable[[Tick], Any]]]:
    """List the parts: how often each ticks, and the call that measures it."""
    runs = len(SHOWN) + 1
    steps, seeds, many = (300, 2, 2) if quick else (3000, 5, 16)  # digits are chaotic: five seeds leave all open
    epochs, letters, pushes = (5, 60, 300) if quick else (200, 3000, 3000)
    return {
        "moments": (len(STREAMS) * steps, lambda tick: moments(steps, tick)),
        "digits": (many * runs, lambda tick: training(many, lambda *a: train_digits(epochs, *a), tick)),
        "text": (seeds * runs, lambda tick: training(seeds, text_trainer(letters), tick)),
        "rules": (len(KEEPERS) * letters, lambda tick: rules(letters, tick)),
        "rounding": (len(PUSHED) * pushes + len(DECAYED) * 3 * pushes, lambda tick: rounding(pushes, tick)),
    }


# ---------------------------------------------------------------- moments


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
        """Give m, v and the direction."""
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
        """Give m, v and the direction."""
        return self.m.numpy(), self.v.numpy(), self.d.numpy()


def bitsandbytes() -> Callable[[Any, bool], Any]:
    """Give bitsandbytes' blockwise code as its CUDA optimizer computes it: the nearest entry of its own table.

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
    """Give torchao's 8-bit optimizer state."""
    made, torch = import_module("torchao.optim.quant_utils"), import_module("torch")
    tables = {signed: torch.tensor(made.create_dynamic_map(signed)) for signed in (True, False)}

    def encode(x: Any, signed: bool) -> Any:
        scaled, scale = made.scale_tensor(x, TILE)
        codes = made.quantize_8bit_with_qmap(scaled, tables[signed])
        return made.dequant_with_qmap(codes, tables[signed], scale)

    return encode


def contestants(n: int) -> dict[str, Any]:
    """Give each way to keep m and v by name, float32 first; peers that are not installed are left out."""
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


# ---------------------------------------------------------------- training


def training(seeds: int, train: Callable[[str, int, bool], dict[str, float]], tick: Tick) -> dict[str, Any]:
    """Train under every preset with every seed; each seed gives all presets the same start and the same batches."""
    found: dict[str, Any] = {}
    for name in ["f32", DISTURBED, *SHOWN[1:]]:
        for seed in range(seeds):
            for what, value in train("f32" if name == DISTURBED else name, seed, name == DISTURBED).items():
                found.setdefault(name, {}).setdefault(what, []).append(value)
            tick()
    return found


def disturb(values: np.ndarray, seed: int) -> None:
    """Change each value by about a millionth of it."""
    values *= 1 + 1e-6 * np.random.default_rng(1000 + seed).standard_normal(values.shape).astype(np.float32)


def train_digits(epochs: int, storage: str, seed: int, disturbed: bool) -> dict[str, float]:
    """Train the demo's perceptron; the forward pass reads the parameters' forward plane and computes in float32."""
    from fastopt.demo import digits

    data, params = digits.load(0), digits.initial(seed)
    if disturbed:
        for values in params.values():
            disturb(values, seed)
    steps = epochs * len(list(fastopt.minibatches(data.x_train, data.y_train, size=64, seed=seed)))
    rule = digits.make_rule("adam", lr=None, schedule="cosine", steps=steps, noise=None)
    opt = fastopt.Optimizer(rule, params, storage=stored(storage, rule), backend="cpu", seed=seed)
    gradients = {name: np.zeros_like(value) for name, value in params.items()}
    random, losses = np.random.default_rng(seed), []

    def read() -> None:
        for name, value in params.items():
            value[...] = opt.params[name]

    for epoch in range(epochs):
        images = data.x_train + np.float32(digits.JITTER) * random.standard_normal(data.x_train.shape, np.float32)
        losses.append([])
        for x, y in fastopt.minibatches(images, data.y_train, size=64, seed=seed, epoch=epoch):
            read()
            losses[-1].append(digits.loss_and_gradients(params, gradients, x, y))
            for name, gradient in gradients.items():
                opt.grads[name][...] = gradient
            opt.step()
    read()
    return {
        "training": float(np.mean(losses[-1])),
        "validation": digits.loss_and_gradients(params, gradients, data.x_test, data.y_test),
        "accuracy": digits.accuracy(params, data.x_test, data.y_test),
        "steps": steps,
    }


WIDTH, HEADS, WINDOW, BATCH = 48, 4, 32, 16


class Transformer:
    """One block on characters, in torch: its parameters and gradients are views of two flat float32 arrays."""

    def __init__(self, letters: int, seed: int):
        torch = import_module("torch")
        d, ones = WIDTH, lambda shape: len(shape) == 1
        shapes: dict[str, tuple[int, ...]] = {
            "letters": (letters, d), "places": (WINDOW, d), "qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d),
            "down": (4 * d, d), "scale1": (d,), "scale2": (d,), "scale3": (d,), "scores": (d, letters),
        }  # fmt: skip
        ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
        self.flat, self.gradient = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], np.float32)
        random = np.random.default_rng(seed)
        self.params: dict[str, Any] = {}
        for (name, shape), end in zip(shapes.items(), ends, strict=True):
            place = slice(end - int(np.prod(shape)), end)
            deviation = 0.02 if name in ("letters", "places") else shape[0] ** -0.5
            drawn = np.ones(shape) if ones(shape) else deviation * random.standard_normal(shape)
            self.flat[place] = drawn.ravel()
            made = torch.from_numpy(self.flat[place]).view(shape).requires_grad_()
            made.grad = torch.from_numpy(self.gradient[place]).view(shape)
            self.params[name] = made

    def loss(self, windows: Any) -> Any:
        """Compute the mean cross-entropy of each window's next characters, in nats a character."""
        f, p, x, y = import_module("torch.nn.functional"), self.params, windows[:, :-1], windows[:, 1:]
        h = p["letters"][x] + p["places"]
        a = f.layer_norm(h, (WIDTH,), p["scale1"]) @ p["qkv"]
        q, k, v = a.view(len(x), WINDOW, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(h.shape) @ p["out"]
        h = h + f.gelu(f.layer_norm(h, (WIDTH,), p["scale2"]) @ p["up"]) @ p["down"]
        scores = f.layer_norm(h, (WIDTH,), p["scale3"]) @ p["scores"]
        return f.cross_entropy(scores.flatten(0, 1), y.flatten())


def text_trainer(steps: int) -> Callable[[str, int, bool], dict[str, float]]:
    """Read the text, Python's own documentation; the last tenth of it is for validation."""
    topics = import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    letters = sorted(set(text))
    number = {letter: k for k, letter in enumerate(letters)}
    numbers = np.array([number[letter] for letter in text])
    known, unseen = np.split(numbers, [len(numbers) * 9 // 10])
    from fastopt.schedules import Cosine, Warmup

    rule = fastopt.Adam(lr=Warmup(steps // 20) * Cosine(5e-3, steps))

    def windows(source: np.ndarray, starts: np.ndarray) -> Any:
        return import_module("torch").from_numpy(source[starts[:, None] + np.arange(WINDOW + 1)])

    def train(storage: str, seed: int, disturbed: bool) -> dict[str, float]:
        torch = import_module("torch")
        torch.set_num_threads(1)
        net = Transformer(len(letters), seed)
        if disturbed:
            disturb(net.flat, seed)
        kept = stored(storage, rule)
        opt = fastopt.Optimizer(rule, {"w": net.flat.copy()}, storage=kept, backend="cpu", seed=seed)
        random, losses = np.random.default_rng(seed), []
        for _ in range(steps):
            net.flat[...] = opt.params["w"]
            net.gradient[...] = 0
            loss = net.loss(windows(known, random.integers(0, len(known) - WINDOW, BATCH)))
            loss.backward()
            opt.grads["w"][...] = net.gradient
            opt.step()
            losses.append(loss.item())
        net.flat[...] = opt.params["w"]
        with torch.no_grad():
            unseen_loss = net.loss(windows(unseen, np.arange(0, len(unseen) - WINDOW, WINDOW))).item()
        last = float(np.mean(losses[-max(steps // 20, 1) :]))
        return {"training": last, "validation": unseen_loss, "steps": steps, "parameters": net.flat.size}

    return train


def against_f32(values: Mapping[str, Any], what: str) -> dict[str, dict[str, Any]]:
    """Compare each preset with float32: means, spread over seeds, and the paired difference with its standard error."""
    exact = np.array(values["f32"][what])
    spread = exact.std(ddof=1)
    found = {}
    for name, of in values.items():
        off = np.array(of[what]) - exact
        found[name] = {
            "mean": float(np.mean(of[what])),
            "deviation": float(np.std(of[what], ddof=1)),
            "difference": float(off.mean()),
            "error": float(off.std(ddof=1) / np.sqrt(len(off))),
            "within": bool(abs(off.mean()) <= spread),
        }
    return found


# ---------------------------------------------------------------- rules

KEEPERS: list[tuple[str, Any, str]] = [
    ("Adam, v", fastopt.Adam(), "v"),
    ("Adam with AMSGrad, vmax", fastopt.Adam(amsgrad=True), "vmax"),
    ("RMSprop, v", fastopt.RMSprop(), "v"),
    ("Adagrad, v", fastopt.Adagrad(), "v"),
    ("Adadelta, u", fastopt.Adadelta(), "u"),
    ("Adamax, u", fastopt.Adamax(), "u"),
]
KEPT = ["8bit", NEAREST, "bf16"]


def rules(steps: int, tick: Tick, n: int = 4096) -> list[dict[str, Any]]:
    """Compare the unsigned state of other rules with float32's after so many steps with gradients of 1."""
    rows = []
    for shown, rule, buffer in KEEPERS:
        random = np.random.default_rng(12)
        start = {"x": np.zeros(n, np.float32)}
        opts = {
            name: fastopt.Optimizer(rule, start, storage=stored(name, rule), backend="cpu") for name in ("f32", *KEPT)
        }
        for _ in range(steps):
            g = random.standard_normal(n, dtype=np.float32)
            for opt in opts.values():
                opt.grads["x"][...] = g
                opt.step()
            tick()
        exact = opts["f32"].state(buffer)["x"].astype(np.float64)
        for name in KEPT:
            kept = opts[name].state(buffer)["x"].astype(np.float64)
            mean, quantiles = kept.mean() / exact.mean(), np.quantile(kept / exact, [0.01, 0.5, 0.99])
            rows.append({"of": shown, "storage": name, "mean": float(mean), "quantiles": quantiles.tolist()})
    return rows


# ---------------------------------------------------------------- rounding

PUSHED = ["f32", "bf16", "bf16_sr", "bf16_kahan", "split"]
DECAYED = ["f32", "bf16", "bf16_sr", "uf8"]
PUSH = 1e-4


def rounding(steps: int, tick: Tick, n: int = 4096) -> dict[str, Any]:
    """Push parameters from 1.0 by 1e-4 a step; let v grow at gradients of 1, and decay at gradients of 0.1."""
    every, found = max(steps // 100, 1), {"pushed": {}, "decayed": {}}

    def seen(values: np.ndarray) -> list[float]:
        return [float(np.mean(values)), *np.quantile(values, [0.05, 0.95]).tolist()]

    for name in PUSHED:
        start = {"x": np.ones(n, np.float32)}
        opt = fastopt.Optimizer(fastopt.SGD(lr=PUSH), start, storage={"p": name}, backend="cpu")
        opt.grads["x"][...] = 1
        path = []
        for t in range(1, steps + 1):
            opt.step()
            if t % every == 0:
                path.append([t, *seen(opt.master()["x"])])
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
                path.append([t, *seen(opt.state("v")["x"])])
            tick()
        found["decayed"][name] = path
    return found


# ---------------------------------------------------------------- bytes


def sizes() -> dict[str, dict[str, Any]]:
    """Count, for Adam under every preset, the bytes a step moves and those that stay, the gradient's among them."""
    found = {}
    for name, preset in fastopt.PRESETS.items():
        rule = fastopt.Adam()
        kept = preset.formats(rule, parameters(rule).buffers)
        buffers = plan(rule, tuple(kept.items()))[0].buffers
        size = [b.dtype.itemsize / (TILE if b.tiled else 1) for b in buffers]
        moved = sum(s * (b.read + b.written) for s, b in zip(size, buffers, strict=True))
        found[name] = {"formats": kept, "moved": moved, "resident": sum(size)}
    return found


# ---------------------------------------------------------------- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown; the first column is text."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(run: Mapping[str, Any]) -> dict[str, str]:
    """Write every table of docs/storage.md from one run's results."""
    found, made = run["results"], {}
    tasks = [task for task in ("digits", "text") if task in found]
    costs = {task: against_f32(found[task], "validation") for task in tasks}
    made["presets"] = table(
        ["preset", "p", "g", "m", "v", "bytes moved a step", "bytes resident", *(f"{task}: loss" for task in tasks)],
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
            ["v kept as", "σ", "within a factor of 1.5", "zeros", "1 %", "median", "99 %"],
            [
                [*n, _share(r["v"]["within"]), _share(r["v"]["zeros"]), *(f"{q:.3f}" for q in r["v"]["quantiles"])]
                for r, n in named
            ],
        )
        steady = sorted((r for r in found["moments"] if r["stream"] == "mean s"), key=lambda r: codes.index(r["code"]))
        named += [(r, [r["code"], f"{r['sigma']:g}, steady"]) for r in steady]
        made["m"] = table(
            ["m kept as", "σ", "error, median", "error, 99 %", "bias, mean", "bias, 99 %", "zeros"],
            [
                [*n, *(f"{e:.3f}" for e in m["error"]), f"{m['bias']:+.4f}", f"{m['bias_99']:.3f}", _share(m["zeros"])]
                for m, n in ((r["m"], n) for r, n in named)
            ],
        )
        made["direction"] = table(
            ["m and v kept as", "σ", "error, median", "error, 99 %", "size of the step"],
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
            ["p kept as", "after the last step: mean", "5 % to 95 % of elements"],
            [[f"`{name}`", *_ends(path[-1])] for name, path in found["rounding"]["pushed"].items()],
        )
        third = len(found["rounding"]["decayed"]["f32"]) // 3 - 1
        made["decayed"] = table(
            ["v kept as", "grown: mean", "5 % to 95 %", "decayed: mean", "5 % to 95 %"],
            [
                [f"`{name}`", *_ends(path[third]), *_ends(path[-1])]
                for name, path in found["rounding"]["decayed"].items()
            ],
        )
    machine, versions = run["machine"], run["versions"]
    names = ", ".join(f"{k} {versions[k]}" for k in ("python", "numpy", "torch", *PACKAGES[:2]) if versions.get(k))
    made["run"] = (
        f"Measured {run['date'][:10]} on {machine['cpu']}, one thread, in {run['seconds'] / 60:.0f} minutes; {names}."
    )
    return made


def training_table(found: Mapping[str, Any], digits: int) -> str:
    """Write the table of one task; a mean is within where its difference is at most float32's spread over seeds."""
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
    """Write what a preset adds to float32's validation loss, and the standard error of that."""
    if name not in cost or name == "f32":
        return "0" if name == "f32" else "not measured"
    scale = 100 / cost["f32"]["mean"]
    return f"{cost[name]['difference'] * scale:+.1f} ± {cost[name]['error'] * scale:.1f} %"


def _ends(point: Sequence[float]) -> list[str]:
    return [f"{point[1]:.4f}", f"{point[2]:.4f} to {point[3]:.4f}"]


def _bytes(count: float) -> str:
    return f"{count:.2f}".removesuffix(".00")


def _share(x: float) -> str:
    return f"{100 * x:.1f} %"


def _number(x: float) -> str:
    return f"{x:.3f}" if x < 100 else f"{x:,.0f}"


def claims(run: Mapping[str, Any]) -> dict[str, bool]:
    """Check what the 8-bit second moments have to keep: 98 % within a factor of 1.5 and no zeros, at every σ."""
    rows = [r for r in run["results"].get("moments", []) if r["code"] == "f8 and uf8" and r["stream"] == "mean 0"]
    return {f"uf8, σ = {r['sigma']:g}": r["v"]["within"] >= 0.98 and r["v"]["zeros"] == 0 for r in rows}


def write_document(run: Mapping[str, Any], document: Path) -> None:
    """Put every table of a run between its marks in the document: `<!-- table: v -->` … `<!-- end -->`."""
    text = document.read_text(encoding="utf-8")
    for name, made in tables(run).items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
    document.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- pictures

COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00"]  # Okabe & Ito's, told apart by everyone
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
    """Draw √v's ratio to float32 from its 1 % to its 99 % quantile, a panel for each σ."""
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
                axes.text(0.105, k - 0.32, f"{_share(r['v']['zeros'])} are 0", fontsize=12, color=COLOURS[1 + k])
        axes.set(xscale="log", title=f"σ = {sigma:g}", yticks=range(len(codes)), yticklabels=codes, xlim=(0.1, 4))
        axes.set_xticks([0.1, 0.25, 0.5, 1, 2, 4], ["≤ 0.1", "0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_ylim(len(codes) - 0.5, -0.6)
    figure.supxlabel(
        "√v relative to float32: bar from the 1 % to the 99 % quantile, ring at the median; grey: within 1.5 times",
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
    note = "◆ mean and its standard error, • one seed; grey: float32's deviation over seeds; orange squares: outside it"
    figure.suptitle(note, x=0.01, ha="left", fontsize=13)


def draw_rounding(figure: Any, found: Mapping[str, Any]) -> None:
    """Draw the pushed parameters and the second moments over the steps, means and 5 % to 95 % of the elements."""
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
    left.set_title("A parameter at 1.0, moved by 0.0001 a step")
    right.set_title("v, as gradients of 1 fall to 0.1")
    right.set_yscale("log")
    right.set_ylabel("mean of v (band: 5 % to 95 % of uf8's)")
    left.set_ylabel("mean (band: 5 % to 95 % of bf16_sr's)")


# ---------------------------------------------------------------- the command


@contextmanager
def bars(parts: Mapping[str, int]) -> Iterator[Callable[[str], Tick]]:
    """Show a bar for each part, if rich is installed and somebody is looking; give each part's tick."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda part: lambda: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        tasks = {part: shown.add_task(part, total=total, start=False) for part, total in parts.items()}

        def begin(part: str) -> Tick:
            shown.start_task(tasks[part])
            return lambda: shown.advance(tasks[part])

        yield begin


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def measure(quick: bool = False, only: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Measure part after part on one thread; give the record as it stands after each."""
    from threadpoolctl import threadpool_limits

    threads, start = fastopt.get_threads(), time.perf_counter()
    run = {"suite": "quality", "quick": quick, "threads": 1} | record.conditions()
    run["versions"] |= {package: _version(package) for package in PACKAGES}
    run["results"] = {"bytes": sizes()}
    parts = {name: part for name, part in work(quick).items() if not only or name in only}
    fastopt.set_threads(1)
    try:
        with threadpool_limits(1), bars({name: total for name, (total, _) in parts.items()}) as begin:
            for name, (_, call) in parts.items():
                with np.errstate(all="ignore"):
                    run["results"][name] = call(begin(name))
                run["seconds"] = round(time.perf_counter() - start, 1)
                yield run
    finally:
        fastopt.set_threads(threads)


def results(path: Path) -> dict[str, Any]:
    """Read what a file holds: the last full measurement of each part, and when the first of them was made."""
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    runs = [run for run in runs if run["suite"] == "quality" and not run["quick"]]
    merged = {part: found for run in runs for part, found in run["results"].items()}
    return runs[0] | {"results": merged, "seconds": sum(run["seconds"] for run in runs)}


def main(quick: bool = False, out: Path | None = None, only: Sequence[str] = (), show: Path | None = None) -> None:
    """Measure and keep the results; or, with `show`, write the document's tables and pictures from kept ones."""
    if show:
        run = results(show)
        write_document(run, DOCS / "storage.md")
        draw(run, DOCS / "pictures")
        return
    path, run = out or record.FOLDER / f"quality-{datetime.date.today().isoformat()}.jsonl", None
    try:
        for run in measure(quick, only):  # noqa: B007 — an interrupt does not cost what was measured before it
            pass
    finally:
        if run:
            record.append(path, run)
            print("\n\n".join(f"{name}\n{made}" for name, made in tables(run).items()))
            print("\n".join(f"{claim}: {'yes' if holds else 'NO'}" for claim, holds in claims(run).items()))
            print(f"{run['seconds']:.0f} s; results added to {path}")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m fastopt.bench.quality", description=__doc__, formatter_class=form)
    made.add_argument("--quick", action="store_true", help="a minute, far too short to judge by")
    made.add_argument("--out", type=Path, metavar="FILE", help="add the results to this file")
    made.add_argument("--only", nargs="+", default=(), choices=list(work(True)), help="some of the parts")
    made.add_argument("--show", type=Path, metavar="FILE", help="write the document's tables and pictures from a file")
    return made


if __name__ == "__main__":
    main(**vars(parser().parse_args()))
