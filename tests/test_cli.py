"""The command line: what it trains, races, shows and says, and how it refuses.

Over 300 lines: each command is tried, and the table of what it refuses.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from cases import fresh_buffers
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from typer.testing import CliRunner

import fastopt
from fastopt.bench import ceiling, clock, record
from fastopt.cli import main
from fastopt.demo import digits, machine, pictures, race
from fastopt.demo.commands import app
from fastopt.demo.parsing import parse_storage
from fastopt.demo.surfaces import SURFACES
from fastopt.kernels.backends import print_source
from fastopt.kernels.compiler.plan import host_scalars
from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import tuning


def run(*arguments: str) -> str:
    # Without COLUMNS, which shells and pytest's workers set: a file gets long lines.
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": None}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def train(
    name: str,
    *,
    seed: int = 0,
    epochs: int = 30,
    batch_size: int = 64,
    schedule: str = "warmup-cosine",
    **more: Any,
) -> digits.Run:
    data = digits.load(seed)
    steps = epochs * -(-len(data.x_train) // batch_size)
    rule = digits.make_rule(name, lr=None, schedule=schedule, steps=steps, noise=None)
    return digits.train(rule, data, epochs=epochs, batch_size=batch_size, seed=seed, **more)


def require_picture(path: Path, colours: list[str]) -> None:
    """Require a PNG of a sensible size in which each of these colours, and many others, are found."""
    pixels = np.round(matplotlib.image.imread(path)[..., :3] * 255).astype(np.uint8)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    found = set(np.unique(pixels.astype(int) @ [1 << 16, 1 << 8, 1]).tolist())
    assert len(found) > 200
    assert {int(colour.removeprefix("#"), 16) for colour in colours} <= found


# --- train


@pytest.mark.parametrize("seed", range(5))
def test_adam_reads_at_least_97_percent_of_the_test_images(seed: int):
    assert train("adam", seed=seed).accuracies[-1] >= 0.97


@pytest.mark.parametrize("name", [*fastopt.RULES, *fastopt.MATRIX_RULES])
def test_every_rule_trains_well_at_its_own_learning_rate(name: str):
    # Rprop takes the noise of small batches for turns of the gradient: it trains on all images at once.
    settings: dict[str, Any] = {"epochs": 200, "batch_size": 10_000} if name == "rprop" else {}
    assert train(name, **settings).accuracies[-1] >= 0.96


@pytest.mark.parametrize("schedule", digits.SCHEDULES)
def test_every_schedule_trains_and_survives_a_single_step(schedule: str):
    assert train("adam", epochs=10, schedule=schedule).accuracies[-1] >= 0.95
    assert np.isfinite(digits.make_rule("adam", lr=None, schedule=schedule, steps=1, noise=None).lr(1))


def test_training_replays_bit_for_bit_on_every_backend():
    runs = [train("adam", epochs=1, backend=backend) for backend in ("cpu", "cpu", "reference")]
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0].losses, other.losses)


def test_the_gradients_are_those_of_the_loss():
    # Central differences with h = 1e-5 err by h²·f'''/6 and 2⁻⁵³·f/h: below 1e-9 each where f and f''' are of order 10.
    random = np.random.default_rng(0)
    params = {name: value.astype(float) for name, value in digits.initial(0).items()}
    grads = {name: np.empty_like(value) for name, value in params.items()}
    scratch = {name: np.empty_like(value) for name, value in params.items()}
    x, y, h = random.standard_normal((5, 64)), random.integers(0, 10, 5), 1e-5
    digits.loss_and_gradients(params, grads, x, y)
    for name, value in params.items():
        for k in random.integers(0, value.size, 5):
            kept = value.flat[k]
            around = []
            for value.flat[k] in (kept + h, kept - h):
                around.append(digits.loss_and_gradients(params, scratch, x, y))
            value.flat[k] = kept
            assert abs((around[0] - around[1]) / (2 * h) - grads[name].flat[k]) < 1e-7, name


def test_train_prints_a_table_and_draws(tmp_path: Path):
    out = tmp_path / "digits.png"
    text = run("train", "--rule", "adam", "--rule", "sgd", "--epochs", "2", "--noise", "0.001", "--out", str(out))
    for word in ("test accuracy", "training loss", "steps/s", "time in steps", "adam", "sgd", str(out.name)):
        assert word in text.replace("\n", "")
    require_picture(out, [pictures.COLOURS["adam"], pictures.COLOURS["sgd"]])


def test_a_run_that_diverges_says_so(tmp_path: Path):
    text = run("train", "--rule", "sgd", "--lr", "1e30", "--epochs", "1", "--out", str(tmp_path / "digits.png"))
    assert "diverged" in text


# --- race


def test_race_prints_a_table_and_draws(tmp_path: Path):
    out = tmp_path / "race.png"
    text = run("race", "--steps", "20", "--out", str(out))
    for word in (
        "bowl",
        "saddle",
        "rosenbrock",
        "beale",
        "sgd",
        "sgd + noise",
        "momentum",
        "rmsprop",
        "adam",
        "not in 20",
    ):
        assert word in text
    require_picture(out, [pictures.COLOURS[name] for name in ("sgd", "sgd + noise", "momentum", "rmsprop", "adam")])


def test_the_lessons_of_the_race_hold():
    lanes = race.race(["sgd", "momentum"], steps=None, seed=0, backend="reference")
    for surface, field in lanes.items():
        sgd, momentum = field[0], field[-1]
        assert sgd.rule.lr == momentum.rule.lr
        assert sgd.arrived is None, surface
        assert momentum.arrived is not None, surface
    sgd, momentum = (np.sign(lane.path[:60, 1]) for lane in lanes["bowl"])
    assert np.sum(sgd[1:] != sgd[:-1]) == 59  # a zigzag: across with every step
    assert np.sum(momentum[1:] != momentum[:-1]) < 10
    sgd, noisy, _ = lanes["saddle"]
    assert noisy.heights[-1] < -0.05 < sgd.heights[-1]


@pytest.mark.parametrize("steps", [1, 100])
def test_who_has_arrived_stays_near_the_minimum_to_the_end(steps: int):
    for surface, field in race.race(list(fastopt.RULES), steps=steps, seed=0, backend="reference").items():
        for lane in field:
            near = lane.heights - SURFACES[surface].f(*SURFACES[surface].minima[0]) <= race.NEAR
            expected = [step for step in range(1, steps + 1) if near[step:].all()]
            assert lane.arrived == (expected[0] if expected else None), (surface, lane.name)


def test_who_only_passes_the_minimum_has_not_arrived():
    (lion,) = race.race(["lion"], steps=None, seed=0, backend="reference")["bowl"]
    assert lion.heights.min() < race.NEAR < lion.heights[-1]
    assert lion.arrived is None


def test_every_rule_races_the_same_on_every_backend():
    both = [race.race(list(fastopt.RULES), steps=20, seed=3, backend=b) for b in ("reference", "cpu")]
    for one, other in zip(*(chain(*lanes.values()) for lanes in both), strict=True):
        assert np.all(np.isfinite(one.path))
        np.testing.assert_array_equal(one.path, other.path)


@dataclasses.dataclass(frozen=True)
class Newcomer(fastopt.SGD):
    """A rule that has just been added to RULES, and to no table of the demo."""

    lr: Any = 0.01


def test_a_rule_that_no_table_knows_trains_and_races_at_its_own_learning_rate(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(fastopt.RULES, "newcomer", Newcomer)
    out = str(tmp_path / "picture.png")
    text = run("train", "--rule", "newcomer", "--rule", "adam", "--epochs", "1", "--out", out)
    assert "newcomer" in text
    assert "0.01" in text
    text = run("race", "--rule", "newcomer", "--steps", "2", "--out", out)
    assert "lr=0.01" in text


# --- pictures


def draw(monkeypatch: pytest.MonkeyPatch, folder: Path, arguments: str) -> tuple[Figure, str]:
    """Run a command, and give the figure that it draws and all the words in it."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    run(*arguments.split(), "--out", str(folder / "picture.png"))
    (figure,) = figures
    figure.draw_without_rendering()
    return figure, " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --epochs 1 --batch-size 100000", []),
        ("train --rule sgd --lr 1e6 --epochs 2", ["diverged"]),
        ("train --rule sgd --rule momentum --rule rmsprop --rule adam --epochs 6", []),
        ("train --epochs 1 --batch-size 1", ["cut at the edges"]),
        ("race", []),
        ("race --rule adagrad --rule adam --steps 1", []),
        ("race --rule radam", ["leaves the panel"]),
    ],
)
def test_pictures_show_all_that_is_drawn_or_say_what_is_cut(arguments, words, monkeypatch, tmp_path):
    figure, text = draw(monkeypatch, tmp_path, arguments)
    for word in ("diverged", "cut at the edges", "leaves the panel"):
        assert (word in text) == (word in words)
    panels = [axes.get_window_extent() for axes in figure.axes]
    for legend in figure.findobj(Legend):
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    for axes in figure.axes:
        assert axes.lines
        for line in axes.lines:
            points = np.column_stack(line.get_data()).astype(float)
            points = points[np.isfinite(points).all(axis=1)]
            faint = line.get_alpha() is not None
            assert faint or len(points) > 1 or line.get_marker() not in ("", "None", None)
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            inside = (points >= (left, low)) & (points <= (right, high))
            assert inside.all() or (faint and "cut at the edges" in text) or "leaves the panel" in text


def test_pictures_say_what_is_smoothed_and_what_arrived_means(monkeypatch, tmp_path):
    assert "averaged over about the last 10" in draw(monkeypatch, tmp_path, "train --epochs 1")[1]
    assert "stays within 0.01 of the minimum" in draw(monkeypatch, tmp_path, "race --steps 2")[1]
    assert "stays within 0.01 of the minimum" in " ".join(run("race", "--help").split())


def test_help_lists_every_rule():
    assert all(name in run("--help") for name in (*fastopt.RULES, *fastopt.MATRIX_RULES))


# --- show


@pytest.mark.parametrize(
    ("arguments", "rule", "dtype"),
    [
        ("adam", fastopt.Adam(), "f4"),
        ("adam --set betas=0.0,0.99 --set amsgrad=TRUE", fastopt.Adam(betas=(0.0, 0.99), amsgrad=True), "f4"),
        ("momentum --set nesterov=true --set dampening=none --storage f64", fastopt.Momentum(nesterov=True), "f8"),
    ],
)
def test_show_prints_a_module_that_compiles_to_the_rule(arguments: str, rule: Any, dtype: str, tmp_path: Path):
    path = tmp_path / "shown.py"
    path.write_text(run("show", *arguments.split()), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = trace(rule, np.dtype(dtype))
    kernel = getattr(module, program.name)
    kernel.compile(module.SIGNATURE)
    random = np.random.default_rng(0)
    expected = fresh_buffers(rule, random.standard_normal(1000).astype(dtype))
    expected["g"][...] = random.standard_normal(1000)
    arrays = {name: array.copy() for name, array in expected.items()}
    fastopt.update(rule, 1, expected, backend="reference")
    addresses = [arrays[b.name].ctypes.data for b in program.buffers]
    kernel(0, 1000, 1000, 0, *addresses, *host_scalars(program, rule)(1))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)


@pytest.mark.parametrize("storage", ["split_8bit", "p=bf16_sr,g=bf16,v=uf8"])
def test_show_prints_any_storage(storage: str):
    program = trace(fastopt.Adam(), parse_storage(storage))
    for backend in ("cpu", "cuda"):
        assert run("show", "adam", "--storage", storage, "--backend", backend) == print_source(backend, program)


def test_training_in_ten_bytes_reads_digits_too(tmp_path: Path):
    text = run("train", "--epochs", "3", "--storage", "bf16_8bit", "--out", str(tmp_path / "x.png"))
    found = re.search(r"(\d+\.\d+)%", text)
    assert found is not None
    assert float(found[1]) > 90


# --- info and the ceiling


def test_info_says_what_is_here(monkeypatch: pytest.MonkeyPatch):
    measure = ceiling.measure
    monkeypatch.setattr(ceiling, "measure", lambda **shape: measure(**{**shape, "elements": 1 << 16, "seconds": 0.0}))
    text = run("info")
    words = "fastopt python numpy numba llvmlite backends reference cpu cuda processor vectors bits threads worker"
    for word in (*words.split(), "kernel cache", "writable", "MB", "memory ceiling", "GB/s"):
        assert word in text
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "'cupy-cuda13x[ctk]'" in run("info")


def test_info_says_what_bounds_each_storage(monkeypatch: pytest.MonkeyPatch, fast):
    measure = ceiling.measure
    monkeypatch.setattr(ceiling, "measure", lambda **shape: measure(**{**shape, "elements": 1 << 16, "seconds": 0.0}))
    monkeypatch.setattr(machine, "PRESETS", ("f32", "8bit"))
    monkeypatch.setattr(clock, "speed", lambda *_: [0.5, 0.89, 1.0])
    text = run("info", "--storages")
    assert re.search(r"f32 +28 +[\d.]+ +89% +instructions", text)
    assert re.search(r"8bit +16.06 +[\d.]+ +89% +instructions", text)
    monkeypatch.setattr(clock, "speed", lambda *_: [0.5, 0.9, 1.0])
    assert re.search(r"8bit +16.06 +[\d.]+ +90% +memory", run("info", "--storages"))


def test_info_goes_by_the_features_that_numba_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record.config, "CPU_FEATURES", "+avx2,-avx512f,+fma", raising=False)
    assert record.vectors() == "256 bits (avx2, as NUMBA_CPU_FEATURES says)"


@pytest.mark.parametrize(("reads", "writes"), [(0, 1), (1, 1), (1, 3), (2, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "shared"), [(1, False), (100_003, False), (100_003, True)])
def test_the_ceiling_moves_what_it_says(reads: int, writes: int, dtype: type, n: int, shared: bool, monkeypatch):
    if shared:
        monkeypatch.setattr(tuning, "PARALLEL_FROM", 0)
    arrays = [np.full(n, k + 1, dtype) for k in range(writes + reads)]
    ceiling.bind(arrays[:writes], arrays[writes:])()
    added = sum(range(writes + 1, writes + reads + 1)) if reads else 1
    for k, array in enumerate(arrays):
        np.testing.assert_array_equal(array, np.full(n, k + 1 + (added if k < writes else 0), dtype))


# --- how it refuses


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --rule adm", ["there is no rule 'adm'", "did you mean 'adam'?"]),
        ("race --rule momentun", ["fastopt race", "did you mean 'momentum'?"]),
        ("show lyon", ["fastopt show", "did you mean 'lion'?"]),
        ("train --schedule cosin", ["there is no schedule 'cosin'", "did you mean 'cosine'?"]),
        ("train --lr -1", ["Adam", "lr=-1.0"]),
        ("train --noise nan", ["GradientNoise", "eta=nan"]),
        ("train --backend gpu", ["there is no such backend", "'gpu'"]),
        ("train --out nowhere/digits.png", ["folder does not exist", "nowhere"]),
        ("race --out race.docx", ["file extension", ".png"]),
        ("show adam --backend metal", ["'metal' prints nothing", "cpu"]),
        ("show adam --storage f23", ["no such preset", "'f32'"]),
        ("show adam --storage m=f9", ["no such format", "'f8'"]),
        ("show adam --storage m=split", ["'m', a state buffer, is not stored in the format split"]),
        ("show adam --storage p=f64,v=uf8", ["step computes in float64"]),
        ("train --storage m", ["no such preset"]),
        ("show momentum --set netserov=true", ["no setting 'netserov'", "did you mean 'nesterov'?"]),
        ("show momentum --set nesterov", ["has no value", "NAME=VALUE"]),
        ("show momentum --set nesterov=ja", ["'ja'", "true or false"]),
        ("show adam --set betas=0.9;0.99", ["'0.9;0.99'", "betas=0.9,0.999"]),
        ("show adam --set lr=quick", ["'quick'", "a number"]),
        ("show adam --set lr=-1", ["Adam: the setting lr is out of its range"]),
        ("train --epochs 0", ["--epochs"]),
        ("tain", ["tain"]),
    ],
)
def test_a_refusal_is_words_and_exit_code_2(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fastopt", *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    for word in words:
        assert word in printed.err
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_told(monkeypatch, capsys, tmp_path):
    (tmp_path / "race.png").symlink_to(tmp_path / "nowhere" / "race.png")
    monkeypatch.setattr(sys, "argv", ["fastopt", "race", "--steps", "1", "--out", str(tmp_path / "race.png")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "race.png" in capsys.readouterr().err


def start(code: str, arguments: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=folder)


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("typer", "info"), ("rich", "race"), ("matplotlib", "race"), ("sklearn", "train")],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(missing: str, arguments: str, tmp_path: Path):
    block = f"import sys; sys.modules['{missing}'] = None; from fastopt.cli import main; main()"
    result = start(block, arguments, tmp_path)
    assert result.returncode == 2
    assert not list(tmp_path.iterdir())
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert missing in result.stderr
    assert "pip install -e '.[demo]'" in result.stderr
    assert "pip install -e '.[demo]'" in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_version_is_printed_without_the_extra_and_without_anything_heavy(tmp_path: Path):
    light = (
        "import atexit, sys\n"
        "sys.modules |= dict.fromkeys(('typer', 'rich'))\n"
        "atexit.register(lambda: print(sorted({'numba', 'matplotlib', 'sklearn'} & set(sys.modules))))\n"
        "from fastopt.cli import main; main()"
    )
    result = start(light, "--version", tmp_path)
    assert result.stdout == f"fastopt {fastopt.__version__}\n[]\n"
    assert result.stderr == ""


def test_python_m_fastopt_is_the_command(tmp_path: Path):
    command = [sys.executable, "-m", "fastopt", "show", "sgd"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout == run("show", "sgd")


def test_a_narrow_encoding_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = start("from fastopt.cli import main; main()", "train --help", tmp_path)
    assert result.returncode == 0
    assert "8 ? 8 digits" in " ".join(result.stdout.split())
    result = start("from fastopt.cli import main; main()", "show adam --set lr=-1", tmp_path)
    assert result.returncode == 2
    assert "lr=-1.0" in result.stderr


@pytest.mark.parametrize("command", ["train", "race", "show", "info"])
def test_help_teaches_with_examples(command: str):
    assert f"fastopt {command}" in run(command, "--help").partition("Try:")[2]
