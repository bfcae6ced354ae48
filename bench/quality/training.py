"""Training with every preset and the same seeds: a perceptron on digits, a small transformer on characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality import storages
from fastopt.bench.quality.storages import Tick, storage_of

DISTURBED = "f32, start disturbed"  # by a millionth; differences of the size that this makes are random


def training(seeds: int, train: Callable[[str, int, bool], dict[str, float]], tick: Tick) -> dict[str, Any]:
    """Train with every preset and seed; a seed determines initial values and batches, the same for all presets."""
    found: dict[str, Any] = {}
    for name in ["f32", DISTURBED, *storages.SHOWN[1:]]:
        for seed in range(seeds):
            for what, value in train("f32" if name == DISTURBED else name, seed, name == DISTURBED).items():
                found.setdefault(name, {}).setdefault(what, []).append(value)
            tick()
    return found


def disturb(values: np.ndarray, seed: int) -> None:
    """Multiply each value by 1 plus about a millionth."""
    values *= 1 + 1e-6 * np.random.default_rng(1000 + seed).standard_normal(values.shape).astype(np.float32)


def train_digits(epochs: int, storage: str, seed: int, disturbed: bool) -> dict[str, float]:
    """Train the demo's perceptron; the forward pass uses `opt.params`, as the storage rounds them, in float32."""
    from fastopt.demo import digits

    data, params = digits.load(0), digits.initial(seed)
    if disturbed:
        for values in params.values():
            disturb(values, seed)
    steps = epochs * len(list(fastopt.minibatches(data.x_train, data.y_train, size=64, seed=seed)))
    rule = digits.make_rule("adam", lr=None, schedule="cosine", steps=steps, noise=None)
    opt = fastopt.Optimizer(rule, params, storage=storage_of(storage, rule), backend="cpu", seed=seed)
    gradients = {name: np.zeros_like(value) for name, value in params.items()}
    random, losses = np.random.default_rng(seed), []

    def read_params() -> None:
        for name, value in params.items():
            value[...] = opt.params[name]

    for epoch in range(epochs):
        images = data.x_train + np.float32(digits.JITTER) * random.standard_normal(data.x_train.shape, np.float32)
        losses.append([])
        for x, y in fastopt.minibatches(images, data.y_train, size=64, seed=seed, epoch=epoch):
            read_params()
            losses[-1].append(digits.loss_and_gradients(params, gradients, x, y))
            for name, gradient in gradients.items():
                opt.grads[name][...] = gradient
            opt.step()
    read_params()
    return {
        "training": float(np.mean(losses[-1])),
        "validation": digits.loss_and_gradients(params, gradients, data.x_test, data.y_test),
        "accuracy": digits.accuracy(params, data.x_test, data.y_test),
        "steps": steps,
    }


WIDTH, HEADS, WINDOW, BATCH = 48, 4, 32, 16


class Transformer:
    """A transformer of one block, in torch; its parameters and gradients are views of two flat float32 arrays."""

    def __init__(self, letters: int, seed: int):
        torch = import_module("torch")
        d, ones = WIDTH, lambda shape: len(shape) == 1
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (letters, d), "positions": (WINDOW, d), "qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d),
            "down": (4 * d, d), "scale1": (d,), "scale2": (d,), "scale3": (d,), "scores": (d, letters),
        }  # fmt: skip
        ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
        self.flat, self.gradient = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], np.float32)
        random = np.random.default_rng(seed)
        self.params: dict[str, Any] = {}
        for (name, shape), end in zip(shapes.items(), ends, strict=True):
            span = slice(end - int(np.prod(shape)), end)
            deviation = 0.02 if name in ("embedding", "positions") else shape[0] ** -0.5
            drawn = np.ones(shape) if ones(shape) else deviation * random.standard_normal(shape)
            self.flat[span] = drawn.ravel()
            made = torch.from_numpy(self.flat[span]).view(shape).requires_grad_()
            made.grad = torch.from_numpy(self.gradient[span]).view(shape)
            self.params[name] = made

    def loss(self, windows: Any) -> Any:
        """Compute the mean cross-entropy of each window's next characters, in nats per character."""
        f, p, x, y = import_module("torch.nn.functional"), self.params, windows[:, :-1], windows[:, 1:]
        h = p["embedding"][x] + p["positions"]
        a = f.layer_norm(h, (WIDTH,), p["scale1"]) @ p["qkv"]
        q, k, v = a.view(len(x), WINDOW, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + mixed.transpose(1, 2).reshape(h.shape) @ p["out"]
        h = h + f.gelu(f.layer_norm(h, (WIDTH,), p["scale2"]) @ p["up"]) @ p["down"]
        scores = f.layer_norm(h, (WIDTH,), p["scale3"]) @ p["scores"]
        return f.cross_entropy(scores.flatten(0, 1), y.flatten())


def text_trainer(steps: int) -> Callable[[str, int, bool], dict[str, float]]:
    """Return a function that trains on Python's own documentation; its last tenth is the validation set."""
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
        start = {"w": net.flat.copy()}
        opt = fastopt.Optimizer(rule, start, storage=storage_of(storage, rule), backend="cpu", seed=seed)
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
