"""Build the sdist and from it the wheel, install the wheel in a clean environment, and use it outside of the checkout.

    python tests/wheel.py                   # needs the package build

The sdist is unpacked and built in isolation, so the links of the checkout (fastopt/kernels, fastopt/bench) have to be
real folders in it. The environment is made in a temporary folder and removed afterwards. It has the wheel alone first,
with NumPy and Numba, then the extra `demo`, and at last sees the torch of the Python that runs this, if that has one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent
FILES = ("py.typed", "__main__.py", "kernels/cuda/tile.cuh", "kernels/rules/adam.py", "bench/run.py")
NOT_FILES = ("printed/", "results/", "test_", "conftest.py")  # golden copies, measurements and tests need the checkout
ALONE = """
import importlib.metadata, numpy as np, fastopt, fastopt.kernels.rules
names = {d.name.lower() for d in importlib.metadata.distributions()}
assert names <= {"fastopt", "numpy", "numba", "llvmlite", "pip", "setuptools"}, names
opt = fastopt.Optimizer(fastopt.Adam(lr=0.5), {"w": np.ones(3, np.float32)}, backend="cpu")
opt.step({"w": np.ones(3, np.float32)})
assert opt.params["w"].tolist() == [0.5] * 3, opt.params["w"]
print(fastopt.__file__)
"""
WITH_TORCH = """
import torch, fastopt.torch
w = torch.nn.Parameter(torch.ones(3))
optimizer = fastopt.torch.AdamW([w], lr=0.5, weight_decay=0.0)
w.sum().backward()
optimizer.step()
assert w.tolist() == [0.5] * 3, w
print(fastopt.torch.__file__)
"""


def run(*command: str, cwd: Path, status: int = 0, path: str | None = None) -> str:
    """Run a command in a folder outside of the checkout, and require its exit status; return what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(
            f"{' '.join(command)}\nexited with {done.returncode}, not {status}\n{done.stdout}{done.stderr}"
        )
    return done.stdout + done.stderr


def check_contents(wheel: Path) -> int:
    """Require that the wheel has all that the library reads and nothing that needs the checkout; count its files."""
    names = ZipFile(wheel).namelist()
    strange = [name for name in names if any(part in name for part in NOT_FILES)]
    wanted = {
        f"fastopt/{'' if folder == 'fastopt' else folder + '/'}{path.relative_to(ROOT / folder).as_posix()}"
        for folder in ("fastopt", "kernels", "bench")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    wanted = {name for name in wanted if not any(part in name for part in NOT_FILES)}
    missing = sorted((wanted | {f"fastopt/{name}" for name in FILES}) - set(names))
    if missing or strange:
        raise SystemExit(f"the wheel lacks {missing} and should not have {strange}")
    return len(names)


def check_commands(commands: Sequence[str], folder: Path) -> None:
    """Require that each command works, by its script and by `python -m fastopt`."""
    for arguments, words in (
        ("train --help", "Train a network"), ("race --help", "Minimize four functions"), ("show adam", "def "),
        ("show adam --backend cuda", "__global__"), ("info", "memory ceiling"), ("bench --help", "Time steps"),
        ("race --steps 5 --out race.png", "race.png"), ("train --epochs 1 --out digits.png", "digits.png"),
        ("bench --rule adam --storage f32 --size 1000 --repeats 1 --peer none", "adam"),
    ):  # fmt: skip
        printed = run(*commands, *arguments.split(), cwd=folder)
        if words not in printed:
            raise SystemExit(f"fastopt {arguments} does not print {words!r}:\n{printed}")
    for picture in ("race.png", "digits.png"):
        if not (folder / picture).stat().st_size:
            raise SystemExit(f"{picture} is empty")


def main() -> None:
    """Build, install and use the wheel."""
    with tempfile.TemporaryDirectory(prefix="fastopt-wheel-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(ROOT), cwd=folder)
        (sdist,) = (folder / "dist").glob("*.tar.gz")
        (wheel,) = (folder / "dist").glob("*.whl")
        count = check_contents(wheel)
        print(
            f"{sdist.name}: {sdist.stat().st_size:,} bytes; {wheel.name}: {wheel.stat().st_size:,} bytes, {count} files"
        )

        venv.create(folder / "venv", with_pip=True)
        scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        python, script = str(scripts / "python"), str(scripts / "fastopt")
        run(python, "-m", "pip", "install", "--quiet", str(wheel), cwd=folder)
        where = run(python, "-c", ALONE, cwd=folder)
        if not where.startswith(str(folder)):
            raise SystemExit(f"fastopt was imported from {where}")
        if run(script, "--version", cwd=folder) != run(python, "-m", "fastopt", "--version", cwd=folder):
            raise SystemExit("the script and python -m fastopt differ")
        if "which is not installed" not in run(script, "race", cwd=folder, status=2):
            raise SystemExit("fastopt race does not say what it needs")
        print("alone: a step, --version, and what the commands need")

        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[demo]", cwd=folder)
        check_commands([python, "-m", "fastopt"], folder)
        run(script, "show", "adam", cwd=folder)
        print("with the extra demo: train, race, show, info, bench")

        if find_spec("torch") is None:
            print("fastopt.torch was not tried: torch is not installed here")
            return
        # Folders in PYTHONPATH have their .pth files ignored, so an editable fastopt there stays out of sight.
        where = run(python, "-c", WITH_TORCH, cwd=folder, path=sysconfig.get_path("purelib"))
        if not where.startswith(str(folder)):
            raise SystemExit(f"fastopt.torch was imported from {where}")
        print("with torch: a step of fastopt.torch")


if __name__ == "__main__":
    main()
