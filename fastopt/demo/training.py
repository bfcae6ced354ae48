"""The command `fastopt train`: train with each rule, draw loss and accuracy, and print a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fastopt.averages import EWA
from fastopt.demo import digits, pictures
from fastopt.demo.console import open_console, print_table, progress_bars


class Options(NamedTuple):
    """The options of the command."""

    rules: list[str]
    epochs: int
    batch_size: int
    lr: float | None
    schedule: str
    noise: float | None
    storage: str | dict[str, str]
    seed: int
    backend: str
    out: Path


def run(options: Options) -> None:
    """Train with each rule, draw the picture and print the table."""
    pictures.require_drawable(options.out)
    data = digits.load(options.seed)
    batches = -(-len(data.x_train) // options.batch_size)
    steps = options.epochs * batches
    rules = {
        name: digits.make_rule(name, lr=options.lr, schedule=options.schedule, steps=steps, noise=options.noise)
        for name in options.rules
    }
    console = open_console()
    runs = {}
    with progress_bars(console) as progress:
        for name, rule in rules.items():
            bar = progress.add_task(name, total=options.epochs)
            runs[name] = digits.train(
                rule,
                data,
                epochs=options.epochs,
                batch_size=options.batch_size,
                storage=options.storage,
                seed=options.seed,
                backend=options.backend,
                on_epoch=lambda bar=bar: progress.advance(bar),
            )
    pictures.draw_training(runs, batches, options.out)
    rows = [_row(name, digits.rate(name, options.lr), run) for name, run in runs.items()]
    headings = ("rule", "learning rate", "test accuracy", "training loss", "steps/s", "time in steps")
    print_table(console, headings, rows, left=1)
    print(f"Loss and accuracy are drawn in {options.out}.")


def _row(name: str, rate: float, run: Any) -> tuple[str, ...]:
    loss = float(EWA.over(run.losses, beta=pictures.SMOOTHING)[-1])
    return (
        name,
        f"{rate:g}",
        f"{run.accuracies[-1]:.2%}",
        f"{loss:.4f}" if loss < float("inf") else "diverged",
        f"{run.steps_per_second:,.0f}",
        f"{run.step_share:.0%}",
    )
