"""The commands with their options and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastopt
from fastopt.demo.parsing import all_rules, parse_setting, parse_storage, rule_names
from fastopt.errors import raised_by

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)

Rules = Annotated[
    list[str], typer.Option("--rule", metavar="RULE", help="An update rule; repeat the option to compare several.")
]
Backend = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu (compiled) or reference (NumPy); the results have the same bits.")
]
Storage = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"Storage of the buffers: {', '.join(fastopt.PRESETS)}; or a format for each buffer, as in"
        f" p=split,g=bf16,m=f8,v=uf8, from {', '.join(fastopt.STORAGES)}.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of all random numbers.")]
Picture = Annotated[Path, typer.Option(metavar="FILE", dir_okay=False, help="The picture file to write.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastopt {fastopt.__version__}")
        raise typer.Exit


@app.callback(
    help="Fused optimizer steps: train with them, compare them, see the generated source, benchmark them."
    f"\n\nRules: {', '.join(sorted(all_rules()))}."
)
def fastopt_(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that come before a command."""


@app.command()
@raised_by("fastopt train")
def train(
    rule: Rules = ["adam"],  # noqa: B006 — typer copies it
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Passes over the training images.")] = 30,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Images in a batch: 1 is stochastic gradient descent, 1437 or more full-batch."
        ),
    ] = 64,
    lr: Annotated[
        float | None, typer.Option(metavar="RATE", help="Peak learning rate.  [default: depends on the rule]")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Learning-rate schedule: constant, cosine, warmup-cosine, step, exponential, inverse-time, one-cycle"
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
    """Train a network to recognize handwritten digits, and draw loss and accuracy.

    The network is a multilayer perceptron (64-128-64-10) in NumPy, the data are scikit-learn's 8 × 8 digits, which need
    no download. Every rule starts with the same parameters and gets the same batches. Prints the accuracy on a test set
    of one fifth of the images.

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
        typer.Option(min=1, metavar="N", help="Number of steps.  [default: 90 to 1000, depending on the function]"),
    ] = None,
    seed: Seed = 0,
    backend: Backend = "reference",
    out: Picture = Path("race.png"),
) -> None:
    """Minimize four functions of two variables with several rules, and draw their paths.

    On an elongated bowl SGD zigzags near its largest stable learning rate, and momentum damps that. Near a saddle point
    the gradient vanishes: momentum leaves it earlier, and so does SGD with gradient noise. Rosenbrock's valley and
    Beale's plateau are slow for SGD. Prints the step at which each rule arrived, that is from which on the function's
    value stays within 0.01 of the minimum, and the final value.

    Try:

        fastopt race

        fastopt race --rule sgd --rule momentum --steps 80 --out momentum.png

        fastopt race --rule adam --rule nadam --rule radam --rule lion
    """
    from fastopt.demo import pictures
    from fastopt.demo import race as races
    from fastopt.demo.console import open_console, print_table

    names = rule_names(rule, matrices=False)
    pictures.require_drawable(out)
    console = open_console()
    found = races.race(names, steps=steps, seed=seed, backend=backend)
    pictures.draw_race(found, out)
    headings = ("function", "rule", "settings", "arrived at step", "final value")
    print_table(console, headings, races.rows(found), left=3)
    typer.echo(f"The paths are drawn in {out}.")


@app.command()
@raised_by("fastopt show")
def show(
    rule: Annotated[str, typer.Argument(help="An update rule, for example adam.")],
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="cpu: a Python module for Numba; cuda: CUDA C++.")
    ] = "cpu",
    storage: Storage = "f32",
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the rule; repeat the option for several."),
    ] = [],  # noqa: B006 — typer copies it
) -> None:
    """Print the source code that fastopt generates for a rule and compiles. It needs no GPU.

    Settings that select a variant (nesterov, amsgrad) change the source, and so does whether a number is zero. Other
    values of numbers do not: they are arguments of the kernel.

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
    kind = all_rules()[name]
    made = kind(**dict(parse_setting(kind, text) for text in setting))
    text = print_source(backend, trace(made, parse_storage(storage)))
    print_code(open_console(), text, BACKENDS[backend].language)


@app.command()
@raised_by("fastopt export")
def export(
    rule: Annotated[str, typer.Argument(help="An update rule, for example adam.")],
    storage: Storage = "f32",
    language: Annotated[
        str, typer.Option("--language", "-l", metavar="NAME", help="c: C99, which is C++ too; cuda: CUDA C++ for nvcc.")
    ] = "c",
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the rule; repeat the option for several."),
    ] = [],  # noqa: B006 — typer copies it
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The file to write.  [default: print it]"),
    ] = None,
) -> None:
    """Write a rule's step as one source file that needs no fastopt: a kernel to take away.

    The file has the step as a function over arrays, in place; a function that computes its scalars (bias corrections,
    step sizes) for a step t; and, for storages that round stochastically, one that computes the keys of their random
    numbers. Its comments say what each argument is, how scales of 8-bit state lie, and how threads share a step. The
    results have the same bits as fastopt's, with GCC and Clang at any -O and with any -march.

    The learning rate is an argument of the function that computes scalars, for schedules of your own. Other settings
    are written into it: choose them by --set. `fastopt.export_source` does the same for rules of your own.

    Try:

        fastopt export adam -o adam.c && cc -O3 -march=native -fno-math-errno -c adam.c

        fastopt export adam --storage 8bit --set weight_decay=0.01 -o adam8.c

        fastopt export lamb -o lamb.c

        fastopt export adam --language cuda -o adam.cu && nvcc -O3 -arch=native -c adam.cu
    """
    from fastopt.demo.console import open_console, print_code
    from fastopt.demo.exporting import command_line, write_source
    from fastopt.kernels.compiler.trace import trace
    from fastopt.kernels.exports import print_export

    (name,) = rule_names([rule])
    kind = all_rules()[name]
    made = kind(**dict(parse_setting(kind, text) for text in setting))
    command = command_line(name, storage, language, setting)
    text = print_export(language, trace(made, parse_storage(storage)), made, command)
    if out is None:
        print_code(open_console(), text, "c" if language == "c" else "cpp")
    else:
        for line in write_source(text, out, language):
            typer.echo(line)


@app.command()
@raised_by("fastopt info")
def info(
    storages: Annotated[
        bool, typer.Option("--storages", help="Measure each storage too: is it bound by memory, or by instructions?")
    ] = False,
) -> None:
    """Describe this machine as fastopt sees it, and measure its memory ceiling.

    The memory ceiling is the throughput of a loop that reads and writes as many arrays as Adam, three updated in place
    and one read, and computes next to nothing. Other running programs lower it.

    Try:

        fastopt info
        fastopt info --storages
    """
    from fastopt.demo import machine
    from fastopt.demo.console import open_console, print_table

    console = open_console()
    with console.status("compiling a kernel for CUDA, if there is a device"):
        cuda = machine.cuda()
    with console.status("measuring the memory ceiling"):
        ceiling = machine.memory_ceiling()
    print_table(console, ("", ""), machine.lines(cuda, ceiling), left=2)
    if storages:
        with console.status("measuring") as status:
            rows = machine.storages(lambda name: status.update(f"measuring AdamW in {name}"))
        headings = ("storage", "bytes moved\nper parameter", "ns per\nparameter", "share of the\nceiling", "bound by")
        console.print()
        print_table(console, headings, rows, left=1)


@app.command()
@raised_by("fastopt bench")
def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PART]...",
            help="rules, storages, sizes, tensors, groups, threads, calls, torch, around, first, memory."
            " [default: all]",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Time this rule; a pattern like 'rmsprop*' selects several."),
    ] = None,
    storage: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Storage of the buffers: {', '.join(fastopt.PRESETS)}.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            "--size", metavar="SIZE", help="Parameters (1000, 64Mi), or tensors x parameters (100x1000, 100x10-1000)."
        ),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, metavar="N", help="Number of threads of a step.")] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Compare with this library; a pattern like 'torch*' selects several; or none."
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="cpu, reference or cuda. On cuda the parts are rules, storages, sizes, tensors, torch."
        ),
    ] = "cpu",
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Rounds; each contestant is timed once in a round.  [default: 10, quick 5]"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller cases: under two minutes.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", file_okay=False, help="Save results.jsonl and pictures there; resumes an interrupted run."
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="OLD NEW", help="Measure nothing, but compare two folders of results; exit code 1 if slower."
        ),
    ] = None,
) -> None:
    """Time steps of fastopt, compared with other libraries and with this machine's memory ceiling.

    The result of each contestant is checked before it is timed. Contestants are timed in turns; tables show medians
    with the 20th and 80th percentiles. "% of ceiling" is the speed relative to a loop that only moves the same number
    of bytes. "× torch fused" is fastopt's speed relative to that library. Cases that fastopt loses are marked ▼ and
    come first. Notes below a table name libraries that are not installed or do not support a case. docs/benchmark.md
    describes the method and its limits. Do not run other programs meanwhile.

    Try:

        fastopt bench --quick

        fastopt bench rules storages --out results

        fastopt bench --rule 'rmsprop*' --size 16Mi --peer 'torch*'

        fastopt bench --rule adam --storage f32 --storage 8bit --size 1Mi --size 64Mi --threads 1

        fastopt bench --size 1000 --size 100x10-1000 --peer 'torch fused'

        fastopt bench --compare results-before results
    """
    from fastopt.demo import bench as command

    options = command.Options(part, rule, storage, size, threads, peer, backend, repeats, quick, out)
    if compare:
        raise typer.Exit(command.compare(*compare, options))
    command.run(options)
