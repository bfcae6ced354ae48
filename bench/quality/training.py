"""Training under every preset with the same seeds: a perceptron on digits, a small transformer on characters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

import fastopt
from fastopt.bench.quality import storages
from fastopt.bench.quality.storages import Tick, stored

DISTURBED = "f32, start disturbed"  # by a millionth: differences as large mean nothing


def training(seeds: int, train: Callable[[str, int, bool], dict[str, float]], tick: Tick) -> dict[str, Any]:
    """Train under every preset with every seed; each seed gives all presets the same start and the same batches."""
    found: dict[str, Any] = {}
    for name in ["f32", DISTURBED, *storages.SHOWN[1:]]:
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
