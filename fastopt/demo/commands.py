"""The commands with their options and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastopt
from fastopt.demo.parsing import parse_setting, parse_storage, rule_names
from fastopt.errors import raised_by

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)

Rules = Annotated[
    list[str], typer.Option("--rule", metavar="RULE", help="An update rule; give it several times to compare.")
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu (compiled) or reference (NumPy): the same bits.")]
Storage = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"How buffers are kept: {', '.join(fastopt.PRESETS)}; or formats by buffer, p=split,g=bf16,m=f8,v=uf8, of"
        f" {', '.join(fastopt.STORAGES)}.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything that is random.")]
Picture = Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="The picture to write.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastopt {fastopt.__version__}")
        raise typer.Exit


@app.callback(
    help="Fused optimizer steps: see them train, race, and what they compile to."
    f"\n\nRules: {', '.join(sorted(fastopt.RULES))}."
)
def fastopt_(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


@app.command()
@raised_by("fastopt train")
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
    storage: Storage = "f32",
    seed: Seed = 0,
    backend: Backend = "auto",
    out: Picture = Path("digits.png"),
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

        fastopt train --storage bf16_8bit
    """
    from fastopt.demo import training

    names, formats = rule_names(rule), parse_storage(storage)
    training.run(training.Options(names, epochs, batch_size, lr, schedule, noise, formats, seed, backend, out))


@app.command()
@raised_by("fastopt race")
def race(
    rule: Rules = ["sgd", "momentum", "rmsprop", "adam"],  # noqa: B006 — typer copies it
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Steps of every race.  [default: 90 to 1000, as the surface needs]"),
    ] = None,
    seed: Seed = 0,
    backend: Backend = "reference",
    out: Picture = Path("race.png"),
) -> None:
    """Race update rules down four surfaces, and draw the paths they take.

    On an elongated bowl SGD zigzags near the largest learning rate that is stable for it, and momentum damps that.
    Near a saddle point the gradient vanishes: momentum leaves earlier, and so does SGD with gradient noise.
    Rosenbrock's valley and Beale's plateau are slow for SGD. Prints the step at which each rule arrived, that is from
    which on the function's value stays within 0.01 of the minimum, and the value that it ended at.

    Try:

        fastopt race

        fastopt race --rule sgd --rule momentum --steps 80 --out momentum.png

        fastopt race --rule adam --rule nadam --rule radam --rule lion
    """
    from fastopt.demo import pictures
    from fastopt.demo import race as races
    from fastopt.demo.console import open_console, print_table

    names = rule_names(rule)
    pictures.require_drawable(out)
    console = open_console()
    lanes = races.race(names, steps=steps, seed=seed, backend=backend)
    pictures.draw_race(lanes, out)
    print_table(console, ("surface", "rule", "settings", "arrived", "final f"), races.rows(lanes), left=3)
    typer.echo(f"The paths are drawn in {out}.")


@app.command()
@raised_by("fastopt show")
def show(
    rule: Annotated[str, typer.Argument(help="An update rule, for example adam.")],
    backend: Annotated[str, typer.Option(metavar="NAME", help="cpu: a Python module; cuda: CUDA C++.")] = "cpu",
    storage: Storage = "f32",
    setting: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="A setting of the rule; give it several times.")
    ] = [],  # noqa: B006 — typer copies it
) -> None:
    """Print the source that a rule becomes: what is compiled, complete and readable. It needs no GPU.

    Settings that choose a form (nesterov, amsgrad) change the module, and so does the question whether a number is
    zero; the numbers themselves do not: they are arguments.

    Try:

        fastopt show adam

        fastopt show momentum --set nesterov=true --set weight_decay=0.1

        fastopt show adam --set betas=0.9,0.95 --storage f64 > adam.py

        fastopt show adam --storage split_8bit

        fastopt show adam --storage p=split,g=bf16,m=f8,v=uf8 --backend cuda

        fastopt show adam --backend cuda > adam.cu && nvcc -cubin --fmad=false adam.cu
    """
    from fastopt.demo.console import open_console, print_code
    from fastopt.kernels.backends import BACKENDS, print_source
    from fastopt.kernels.compiler.trace import trace

    (name,) = rule_names([rule])
    made = fastopt.RULES[name](**dict(parse_setting(fastopt.RULES[name], text) for text in setting))
    text = print_source(backend, trace(made, parse_storage(storage)))
    print_code(open_console(), text, BACKENDS[backend].language)


@app.command()
@raised_by("fastopt info")
def info() -> None:
    """Say what fastopt finds on this machine, and measure how fast a step can be here.

    The memory ceiling is what in-place traffic of Adam's shape reaches: no kernel of that shape can be faster. Close
    other programs to measure it well.

    Try:

        fastopt info
    """
    from fastopt.demo import machine
    from fastopt.demo.console import open_console, print_table

    console = open_console()
    with console.status("compiling for CUDA, if there is a device"):
        cuda = machine.cuda()
    with console.status("measuring the memory ceiling"):
        ceiling = machine.memory_ceiling()
    print_table(console, ("", ""), machine.lines(cuda, ceiling), left=2)


@app.command()
@raised_by("fastopt bench")
def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...",
            help="rules, storages, sizes, tensors, groups, threads, calls, torch, first, memory.  [default: all]",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Time this rule; a pattern as 'rmsprop*' is several.")
    ] = None,
    storage: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Keep buffers so: {', '.join(fastopt.PRESETS)}.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="SIZE", help="Parameters (1000, 64Mi), or tensors of so many (100x1000, 100x10-1000)."
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=1, metavar="N", help="Share a step among so many threads.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Stand beside this library only; a pattern as 'torch*' is several; or none."),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(metavar="NAME", help="cpu, reference, or cuda: the parts rules, storages, sizes, tensors, torch."),
    ] = "cpu",
    repeats: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Rounds, in which each is timed once.  [default: 10; quick, 5]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller cases: under two minutes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Keep results.jsonl and pictures there; go on if interrupted."
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW", help="Measure nothing: say what changed between two folders; exit 1 if slower."
        ),
    ] = None,
) -> None:
    """Time fastopt beside other libraries, as a share of what this machine's memory allows.

    Each contestant is checked for the right result before it is timed. They take turns, and medians with the 20th and
    80th percentiles are shown; "% of ceiling" compares with plain traffic of the same bytes, "× torch fused" says how
    many times as fast as that fastopt is, both within a round. What fastopt loses is marked ▼ and comes first. What is
    not installed, or cannot do a case, is named below a table. docs/benchmark.md says how it is measured, and what is
    not claimed. Let nothing else run meanwhile.

    Try:

        fastopt bench --quick

        fastopt bench rules storages --out results

        fastopt bench --rule 'rmsprop*' --size 16Mi --peer 'torch*'

        fastopt bench --rule adam --storage f32 --storage 8bit --size 1Mi --size 64Mi --threads 1

        fastopt bench --size 1000 --size 100x10-1000 --peer 'torch fused'

        fastopt bench --compare results-before results
    """
    from fastopt.demo import bench as command

    asked = command.Asked(part, rule, storage, size, threads, peer, backend, repeats, quick, out)
    if compare:
        raise typer.Exit(command.compare(*compare, asked))
    command.run(asked)
