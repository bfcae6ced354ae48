"""Checkpoints on disk: whole or as they were, verified, and resumed bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cases import CASES

import fastopt
from fastopt import CheckpointError, LayoutError

PRESETS = ["f32", "f64", "bf16", "split", "8bit", "split_8bit", "bf16_8bit", "bf16_kahan", "mixed_bf16", "mixed_f16"]
SHAPES = {"w": (30, 20), "b": (7,), "scalar": (), "empty": (0, 3), "layers.0/w": (300,)}


def made(rule: Any = None, storage: str = "f32", **own: Any) -> fastopt.Optimizer:
    rng = np.random.default_rng(0)
    kind = np.float64 if storage == "f64" else np.float32
    params = {name: np.asarray(rng.standard_normal(shape), kind) for name, shape in SHAPES.items()}
    return fastopt.Optimizer(rule or fastopt.Adam(lr=0.01), params, storage=storage, seed=3, **own)


def train(opt: fastopt.Optimizer, steps: range) -> fastopt.Optimizer:
    for k in steps:
        rng = np.random.default_rng(k)
        for view in opt.grads.values():
            value = np.asarray(rng.standard_normal(view.shape)).astype(view.dtype)
            if isinstance(view, np.ndarray):
                view[...] = value
            else:
                view.set(value)
        opt.step()
    return opt


def assert_equal(a: fastopt.Optimizer, b: fastopt.Optimizer) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert np.array_equal(x, theirs[name]), name


def resumed(tmp_path: Path, make: Any, other: Any = None) -> None:
    path, opt = tmp_path / "run.safetensors", train(make(), range(3))
    fastopt.save(path, opt)
    train(opt, range(3, 6))
    again = (other or make)()
    again.load_state_dict(fastopt.load(path))
    assert again.t == 3
    assert_equal(train(again, range(3, 6)), opt)
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resumed_run_has_the_same_bits_in_every_storage(preset, tmp_path):
    resumed(tmp_path, lambda: made(storage=preset))


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_same_bits_with_every_rule(case, tmp_path):
    resumed(tmp_path, lambda: made(CASES[case]))


def test_a_resumed_run_has_the_same_bits_with_schedules_noise_and_groups(tmp_path):
    noisy = fastopt.GradientNoise(fastopt.Adam(lr=fastopt.schedules.Cosine(0.1, steps=10)))
    resumed(tmp_path, lambda: made(noisy, "bf16", groups={"b": {"weight_decay": 0.3}}))


def test_a_resumed_run_has_the_same_bits_with_other_threads(tmp_path):
    before, n = fastopt.get_threads(), 2_000_000

    def make():
        return fastopt.Optimizer(fastopt.Adam(), {"w": np.ones(n, np.float32)}, storage="8bit")

    path, opt = tmp_path / "run", train(make(), range(1))
    fastopt.save(path, opt)
    train(opt, range(1, 3))
    try:
        fastopt.set_threads(1)
        again = make()
        again.load_state_dict(fastopt.load(path))
        assert_equal(train(again, range(1, 3)), opt)
    finally:
        fastopt.set_threads(before)


@pytest.mark.parametrize("storage", ["f32", "8bit"])
def test_a_run_moves_between_the_cpu_and_a_device(storage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.install())
    resumed(tmp_path, lambda: made(storage=storage), lambda: made(storage=storage, backend="cuda"))
    resumed(tmp_path, lambda: made(storage=storage, backend="cuda"), lambda: made(storage=storage))


def test_a_checkpoint_says_what_it_is_of(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "run.safetensors"
    opt = train(made(storage="8bit", groups={"b": {"lr": 0.5}}), range(2))
    fastopt.save(path, opt)
    found = fastopt.load(str(path))
    assert (found["t"], found["seed"], found["rules"]) == (2, 3, "Adam")
    assert found.metadata["storage"] == "8bit"
    assert found.metadata["layout"] == [["Adam", ["w", "scalar", "empty", "layers.0/w"]], ["Adam", ["b"]]]
    assert not found["p/w"].flags.writeable
    assert isinstance(found["p/w"].base.base.base, np.memmap) or "memmap" in repr(type(found["p/w"].base))
    with safe_open(path, framework="numpy") as file:
        assert np.array_equal(file.get_tensor("p/w"), opt.master()["w"])
        assert file.metadata()["t"] == "2"
    fastopt.save(path, opt.state_dict())  # taken before, perhaps, and saved in another thread
    assert_equal(opt, train(opt, range(0)))
    assert fastopt.load(path).keys() == found.keys()


@pytest.mark.parametrize("storage", ["f32", "8bit", "bf16"])
def test_another_order_is_refused_where_it_decides_bits(storage, tmp_path):
    path, opt = tmp_path / "run", made(storage=storage)
    fastopt.save(path, opt)
    params = {name: np.zeros(shape, np.float32) for name, shape in reversed(SHAPES.items())}
    other = fastopt.Optimizer(fastopt.Adam(lr=0.01), params, storage=storage)
    found = fastopt.load(path)
    if storage == "f32":
        other.load_state_dict(found)
        return
    before = other.state_dict()
    with pytest.raises(LayoutError, match=r"(?s)another order.*got .*w, b.*expected .*empty, scalar.*do .*dict"):
        other.load_state_dict(found)
    assert all(np.array_equal(x, before[name]) for name, x in other.state_dict().items())
    other.load_state_dict(dict(found))


# Damage.


def test_whatever_is_altered_is_noticed(tmp_path):
    path, opt = tmp_path / "run", made()
    fastopt.save(path, opt)
    whole, rng = path.read_bytes(), random.Random(0)
    damaged = [whole[:n] for n in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1)] + [whole + b"\0", b"\0" * 999]
    for _ in range(400):
        at = rng.randrange(len(whole)) if rng.random() < 0.5 else rng.randrange(1500)
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"load: (the checkpoint|this is not a checkpoint)"):
            fastopt.load(path)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "x"
    save_file({"p/w": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"(?s)not a checkpoint.*no format"):
        fastopt.load(path)
    save_file({"p/w": np.ones(3)}, path, {"format": "fastopt 99"})
    with pytest.raises(CheckpointError, match=r"(?s)got .*fastopt 99.*expected .*fastopt 1"):
        fastopt.load(path)
    with pytest.raises(CheckpointError, match=r"(?s)cannot be read.*No such file"):
        fastopt.load(tmp_path / "nothing")
    with pytest.raises(OSError, match="cannot be read"):
        fastopt.load(tmp_path)


def test_what_cannot_be_written_leaves_the_former_file(tmp_path, monkeypatch):
    path, opt = tmp_path / "run", made()
    fastopt.save(path, opt)
    before = path.read_bytes()
    train(opt, range(1))
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(CheckpointError, match=r"(?s)save: .*cannot be written.*No space left.*do "):
                fastopt.save(path, opt)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
    with pytest.raises(CheckpointError, match="folder exists"):
        fastopt.save(tmp_path / "nothing" / "run", opt)


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
def test_a_disk_that_is_full_in_the_middle_leaves_the_former_file(tmp_path):
    code = f"""
import resource, numpy as np, fastopt
opt = fastopt.Optimizer(fastopt.SGD(), {{"w": np.ones(100_000, np.float32)}})
fastopt.save({str(tmp_path / "run")!r}, opt)
opt.assign({{"w": np.zeros(100_000, np.float32)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    fastopt.save({str(tmp_path / "run")!r}, opt)
except fastopt.CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "cannot be written" in done.stdout
    assert np.all(fastopt.load(tmp_path / "run")["p/w"] == 1)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_the_former_file_or_the_new(kills, tmp_path):
    path = tmp_path / "run"
    code = f"""
import numpy as np, fastopt
opt = fastopt.Optimizer(fastopt.Adam(), {{"w": np.ones(300_000, np.float32)}})
opt.grads["w"][...] = 1
while True:
    opt.step()
    fastopt.save({str(path)!r}, opt)
    print("saved", flush=True)
"""
    rng, seen = random.Random(0), set()
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        state = fastopt.load(path)
        alone = fastopt.Optimizer(fastopt.Adam(), {"w": np.ones(3, np.float32)})
        alone.grads["w"][...] = 1
        for _ in range(state["t"]):
            alone.step()
        assert np.all(state["p/w"] == alone.params["w"][0])
        seen.add(state["t"])
    fastopt.save(path, made())
    assert [p.name for p in tmp_path.iterdir()] == ["run"], "parts of killed processes are removed"
    assert len(seen) > 1


def test_a_part_that_another_process_writes_is_left_alone(tmp_path):
    pytest.importorskip("fcntl")
    from fastopt.files import _part

    with _part(tmp_path / "run") as part:
        fastopt.save(tmp_path / "run", made())
        assert part.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_without_safetensors_an_error_says_so(monkeypatch, tmp_path):
    fastopt.save(tmp_path / "run", made())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match=r"(?s)takes safetensors.*pip install safetensors"):
        fastopt.load(tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_file_has_the_mode_that_files_have(tmp_path):
    path, opt = tmp_path / "run", made()
    mask = os.umask(0o027)
    try:
        fastopt.save(path, opt)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o600)
    fastopt.save(path, opt)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_library_reads_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    path, opt = tmp_path / "run", train(made(), range(2))
    fastopt.save(path, opt)
    state, found = opt.state_dict(), load_file(path)
    assert found.keys() == {name for name in state if "/" in name}
    assert all(np.array_equal(x, state[name]) for name, x in found.items())
