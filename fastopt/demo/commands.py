"""The commands: what their options mean, and how what they find is shown."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

import fastopt
from fastopt.errors import BackendError, SettingError, explain, suggest

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)

Rules = Annotated[
    list[str], typer.Option("--rule", metavar="RULE", help="An update rule; give it several times to compare.")
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu (compiled) or reference (NumPy): the same bits.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything that is random.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastopt {fastopt.__version__}")
        raise typer.Exit


@app.callback()
def fastopt_(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fused optimizer steps: see them train, race, and what they compile to.

    Rules: adadelta, adagrad, adam, adamax, lion, momentum, nadam, radam, rmsprop, sgd.
    """


@app.command()
def train(
    rule: Rules = ["adam"],  # noqa: B006 — typer copies it
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = 30,
    batch_size: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Images in a batch: 1 is stochastic, 1437 or more full-batch descent."),
    ] = 64,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Peak learning rate.  [default: one that suits the rule]")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of the learning rate: constant, cosine, warmup-cosine, step, exponential, inverse-time, one-cycle"
            " or warmup-stable-decay.",
        ),
    ] = "warmup-cosine",
    noise: Annotated[
        float | None, typer.Option(metavar="ETA", help="Add gradient noise of variance ETA / (1 + t)^0.55.")
    ] = None,
    seed: Seed = 0,
    backend: Backend = "auto",
    out: Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="The picture to write.")] = Path(
        "digits.png"
    ),
) -> None:
    """Train a network to read handwritten digits, and draw how it learns.

    A multilayer perceptron (64-128-64-10) in NumPy learns scikit-learn's 8 × 8 digits, which need no download; each
    step is one fused pass by fastopt. Every rule gets the same start and the same batches. Prints the accuracy on the
    fifth of the images that was kept apart, and draws loss and accuracy.

    Try:

        fastopt train

        fastopt train --rule sgd --rule momentum --rule rmsprop --rule adam

        fastopt train --rule sgd --batch-size 1437 --epochs 300 --schedule constant

        fastopt train --rule sgd --noise 0.01 --seed 7 --out noisy.png
    """
    from fastopt.demo import digits, pictures

    names = _rules(rule, "fastopt train")
    pictures.require_drawable(out, "fastopt train")
    data = digits.load(seed)
    batches = -(-len(data.x_train) // batch_size)
    rules = {
        name: digits.make_rule(name, lr=lr, schedule=schedule, steps=epochs * batches, noise=noise) for name in names
    }
    console = _console()
    runs = {}
    with _progress(console) as progress:
        for name, made in rules.items():
            bar = progress.add_task(name, total=epochs)
            runs[name] = digits.train(
                made,
                data,
                epochs=epochs,
                batch_size=batch_size,
                seed=seed,
                backend=backend,
                on_epoch=lambda bar=bar: progress.advance(bar),
            )
    pictures.draw_training(runs, batches, out)
    rows = []
    for name, run in runs.items():
        loss = float(fastopt.EWA.over(run.losses, beta=pictures.SMOOTHING)[-1])
        told = f"{loss:.4f}" if loss < float("inf") else "diverged"
        rows.append(
            (
                name,
                f"{digits.rate(name, lr):g}",
                f"{run.accuracies[-1]:.2%}",
                told,
                f"{run.steps_per_second:,.0f}",
                f"{run.step_share:.0%}",
            )
        )
    _table(console, ("rule", "rate", "test accuracy", "training loss", "steps/s", "time in steps"), rows, left=1)
    typer.echo(f"Loss and accuracy are drawn in {out}.")


@app.command()
def race(
    rule: Rules = ["sgd", "momentum", "rmsprop", "adam"],  # noqa: B006 — typer copies it
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Steps of every race.  [default: 60 to 1000, as the surface needs]"),
    ] = None,
    seed: Seed = 0,
    backend: Backend = "reference",
    out: Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="The picture to write.")] = Path("race.png"),
) -> None:
    """Race update rules down four surfaces, and draw the paths they take.

    On an elongated bowl SGD zigzags near the largest learning rate that is stable for it, and momentum damps that.
    Near a saddle point the gradient vanishes: momentum leaves earlier, and so does SGD with gradient noise.
    Rosenbrock's valley and Beale's plateau are slow for SGD. Prints the step at which each rule arrived near the
    minimum, and the value of the function that it ended at.

    Try:

        fastopt race

        fastopt race --rule sgd --rule momentum --steps 80 --out momentum.png

        fastopt race --rule adam --rule nadam --rule radam --rule lion
    """
    from fastopt.demo import pictures
    from fastopt.demo import race as races

    names = _rules(rule, "fastopt race")
    pictures.require_drawable(out, "fastopt race")
    console = _console()
    lanes = races.race(names, steps=steps, seed=seed, backend=backend)
    pictures.draw_race(lanes, out)
    rows = []
    for surface, field in lanes.items():
        for k, lane in enumerate(field):
            arrived = f"not in {len(lane.path) - 1}" if lane.arrived is None else str(lane.arrived)
            height = f"{lane.heights[-1]:.3g}"
            rows.append((surface if k == 0 else "", lane.name, races.describe(lane.rule), arrived, height))
    _table(console, ("surface", "rule", "settings", "arrived", "final f"), rows, left=3)
    typer.echo(f"The paths are drawn in {out}.")


@app.command()
def show(
    rule: Annotated[str, typer.Argument(help="An update rule, for example adam.")],
    backend: Annotated[str, typer.Option(metavar="NAME", help="cpu.")] = "cpu",
    dtype: Annotated[str, typer.Option(metavar="NAME", help="The precision: f32 or f64.")] = "f32",
    setting: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="A setting of the rule; give it several times.")
    ] = [],  # noqa: B006 — typer copies it
) -> None:
    """Print the module that a rule becomes: what is compiled, complete and readable.

    Settings that choose a form (nesterov, amsgrad) change the module, and so does the question whether a number is
    zero; the numbers themselves do not: they are arguments.

    Try:

        fastopt show adam

        fastopt show momentum --set nesterov=true --set weight_decay=0.1

        fastopt show adam --set betas=0.9,0.95 --dtype f64 > adam.py
    """
    from fastopt.kernels.program import trace
    from fastopt.kernels.storage import STORAGES

    (name,) = _rules([rule], "fastopt show")
    if backend != "cpu":
        what = f"there is no printed module for the backend {backend!r}."
        raise BackendError(explain("fastopt show", what, expected="cpu"))
    if dtype not in STORAGES:
        do = suggest(dtype, list(STORAGES))
        raise SettingError(explain("fastopt show", f"there is no precision {dtype!r}.", do=do))
    made = fastopt.RULES[name](**dict(_setting(fastopt.RULES[name], text) for text in setting))
    program = trace(made, STORAGES[dtype])
    from fastopt.kernels.cpu import print_module

    text = print_module(program)
    console = _console()
    if not console.is_terminal:
        typer.echo(text, nl=False)
        return
    from rich.syntax import Syntax

    console.print(Syntax(text, "python", theme="ansi_dark", background_color="default"), soft_wrap=True)


@app.command()
def info() -> None:
    """Say what fastopt finds on this machine, and measure how fast a step can be here.

    The memory ceiling is what in-place traffic of Adam's shape reaches: no kernel of that shape can be faster. Close
    other programs to measure it well.

    Try:

        fastopt info
    """
    from fastopt.demo import machine

    console = _console()
    with console.status("measuring the memory ceiling"):
        ceiling = machine.memory_ceiling()
    rows = [
        ("fastopt", fastopt.__version__),
        ("versions", machine.versions()),
        ("backends", machine.backends()),
        ("processor", machine.processor()),
        ("vectors", machine.vectors()),
        ("threads", machine.threads()),
        ("kernel cache", machine.kernel_cache()),
        ("memory ceiling", ceiling),
    ]
    _table(console, ("", ""), rows, left=2)


def _rules(names: list[str], where: str) -> list[str]:
    """Check names of rules, and drop repeated ones."""
    for name in names:
        if name not in fastopt.RULES:
            do = suggest(name, list(fastopt.RULES))
            raise SettingError(explain(where, f"there is no rule {name!r}.", do=do))
    return list(dict.fromkeys(names))


def _setting(rule: type, text: str) -> tuple[str, Any]:
    """Parse "name=value" to the type of the rule's setting of that name."""
    where = f"fastopt show {rule.__name__.lower()}"
    name, equals, value = (part.strip() for part in text.partition("="))
    defaults = {f.name: f.default for f in fields(rule)}
    if not equals:
        raise SettingError(explain(where, f"--set {text!r} has no value.", expected="NAME=VALUE", do=f"--set {name}=…"))
    if name not in defaults:
        do = suggest(name, list(defaults))
        raise SettingError(explain(where, f"{rule.__name__} has no setting {name!r}.", do=do))
    default = defaults[name]
    try:
        if isinstance(default, bool):
            return name, {"true": True, "false": False}[value.lower()]
        if isinstance(default, tuple):
            return name, tuple(float(x) for x in value.strip("()").split(","))
        return name, None if default is None and value.lower() == "none" else float(value)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else "numbers" if isinstance(default, tuple) else "a number"
        expected = f"{kind}, for example --set {name}={_example(default)}"
        raise SettingError(explain(where, f"{name} is not of its type.", got=repr(value), expected=expected)) from None


def _example(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "0.0" if default is None else str(default).lower()


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"))
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


def _table(console: Any, headings: tuple[str, ...], rows: list[tuple[str, ...]], left: int) -> None:
    """Print a table whose first `left` columns are text, and the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=any(headings))
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < left else "right", style="bold" if k == 0 else "")
    for row in rows:
        table.add_row(*row)
    console.print(table)
