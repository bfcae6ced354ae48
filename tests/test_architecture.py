"""Which part of the library imports which others, and which packages `import fastopt` loads."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# unit → all units that it imports. A row names only rows above it, so that imports have one direction. "launch" is
# shared by all backends, "api" is what `import fastopt` exports, "commands" are command-line programs.
MAY_IMPORT = {
    "errors": set(),
    "formats": set(),
    "rules": {"errors", "formats"},
    "compiler": {"errors", "formats", "rules"},
    "launch": {"errors", "rules"},
    "reference": {"errors", "formats", "rules", "compiler", "launch"},
    "c": {"formats", "rules", "compiler"},
    "cpu": {"errors", "formats", "compiler", "launch"},
    "cuda": {"errors", "formats", "compiler", "launch", "c"},
    "javascript": {"errors", "compiler", "rules"},  # a language only: it prints, and runs nothing
    "backends": {"errors", "compiler", "launch"},  # a table with the names of the three above, imported when used
    "arrays": {"errors", "formats", "launch"},
    "store": {"formats", "compiler", "arrays"},
    "api": {"errors", "formats", "rules", "compiler", "launch", "backends", "arrays", "store"},
    "torch": {"errors", "formats", "rules", "compiler", "launch", "backends", "arrays", "store", "api"},
    "commands": {
        "errors", "formats", "rules", "compiler", "launch", "c", "cpu", "cuda", "javascript", "backends", "arrays",
        "api",
    },
}  # fmt: skip
UNIT_OF = {
    "fastopt.errors": "errors",
    "fastopt.checks": "errors",
    **{
        f"fastopt.kernels.{name}": name
        for name in ("formats", "rules", "compiler", "reference", "c", "cpu", "cuda", "javascript")
    },
    "fastopt.kernels.backends": "backends",
    "fastopt.kernels.exports": "backends",
    "fastopt.kernels": "launch",
    "fastopt.arrays": "arrays",
    "fastopt.store": "store",
    "fastopt.torch": "torch",
    **{f"fastopt.{name}": "commands" for name in ("bench", "demo", "cli", "__main__")},
    "fastopt": "api",
}
# package that is slow to import or optional → the modules that import it
HEAVY = {
    "numba": {f"fastopt.{name}" for name in ("kernels.jit", "kernels.cpu.apply", "kernels.cpu.jobs",
                                             "kernels.cpu.memory", "kernels.cpu.narrow", "kernels.cpu.totals",
                                             "kernels.cpu.values", "kernels.cpu.wait", "torch.check_tensors",
                                             "bench.record")},
    "llvmlite": {f"fastopt.{name}" for name in ("kernels.cpu.jobs", "kernels.cpu.memory", "kernels.cpu.narrow",
                                                "kernels.cpu.values", "kernels.cpu.tuning", "torch.check_tensors",
                                                "demo.machine", "bench.record")},
    "cupy": {"fastopt.kernels.devices"},
    "torch": {"fastopt.arrays.torch"} | {
        f"fastopt.torch.{name}" for name in ("adapter", "averaging", "bucket", "buckets", "c_abi", "device_numbers",
                                             "flat", "gradients", "guards", "in_backward", "muon", "offload",
                                             "optimizers", "options", "requirements", "state", "transfers")
    },
    "jax": set(),
    "ml_dtypes": {"fastopt.arrays.numpy"},
    "matplotlib": {"fastopt.bench.pictures", "fastopt.bench.quality.pictures", "fastopt.demo.pictures"},
    "sklearn": {"fastopt.demo.digits"},
    "threadpoolctl": {"fastopt.bench.peers.tensors", "fastopt.bench.quality.__main__", "fastopt.demo.digits"},
    "rich": {"fastopt.bench.quality.__main__", "fastopt.demo.bench", "fastopt.demo.console"},
    "typer": {"fastopt.bench.exported", "fastopt.bench.peak_memory", "fastopt.demo.commands"},
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Return every module of fastopt by its full name, with its file."""
    found = {}
    for folder, package in (("fastopt", "fastopt"), ("kernels", "fastopt.kernels"), ("bench", "fastopt.bench")):
        for path in (
            p
            for p in (ROOT / folder).rglob("*.py")
            if p.parent.name != "printed" and p.name not in ("conftest.py", "test_bench.py")
        ):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(x for x in parts if x != "__init__")])] = path
    return found


def imports(path: Path) -> set[str]:
    """Return what a module imports, anywhere in its code: `from a import b, c` is {"a.b", "a.c"}."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return names


def imported_modules() -> dict[str, set[str]]:
    """Return, for each module of fastopt, the modules of fastopt that it imports."""
    known = modules()
    return {
        module: {n if n in known else n.rpartition(".")[0] for n in imports(path)} & known.keys() - {module}
        for module, path in known.items()
    }


def unit_of(module: str) -> str:
    while module not in UNIT_OF:
        module = module.rpartition(".")[0]
    return UNIT_OF[module]


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_a_unit_imports_exactly_what_its_row_lists(unit):
    found = {unit_of(target) for m, targets in imported_modules().items() if unit_of(m) == unit for target in targets}
    assert found - {unit} == MAY_IMPORT[unit]
    units = list(MAY_IMPORT)
    assert MAY_IMPORT[unit] <= set(units[: units.index(unit)])


def test_there_are_no_circular_imports():
    order = list(TopologicalSorter(imported_modules()).static_order())
    assert len(order) == len(modules())


@pytest.mark.parametrize("package", HEAVY)
def test_a_heavy_package_is_imported_only_by_the_listed_modules(package):
    found = {m for m, path in modules().items() if package in {name.split(".")[0] for name in imports(path)}}
    assert found == HEAVY[package]


def test_importing_fastopt_imports_nothing_heavy():
    code = "import sys, fastopt; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert "fastopt" in loaded
    assert not loaded & {
        "numba",
        "llvmlite",
        "cupy",
        "torch",
        "jax",
        "ml_dtypes",
        "matplotlib",
        "rich",
        "typer",
        "sklearn",
        "scipy",
    }


def test_the_extra_demo_lists_every_package_that_the_demo_imports():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    listed = {re.split(r"[<>=]", requirement)[0].replace("scikit-learn", "sklearn") for requirement in extra}
    listed -= {"fastopt[bf16]"}  # ml_dtypes is imported by fastopt.arrays, not by the demo
    used = {name.split(".")[0] for module, path in modules().items() if ".demo" in module for name in imports(path)}
    assert used & set(HEAVY) - {"llvmlite"} == listed


def test_a_folder_that_holds_a_checkout_does_not_hide_the_package(tmp_path):
    """An editable install puts src/ on Python's path, where a package wins over a folder of its name."""
    (tmp_path / "fastopt" / "fastopt").mkdir(parents=True)
    code = "import fastopt, fastopt.kernels.backends; print(fastopt.__version__)"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[1:1] = {[*sys.path[1:]]!r}; {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"], (
        done.stderr
    )
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "src"}, "another mapping makes setuptools install a finder, which comes last"
    assert {path.name for path in (ROOT / "src").iterdir()} - {"fastopt.egg-info"} == {"fastopt"}
    for package in settings["packages"]:
        assert (ROOT / "src" / Path(*package.split(".")) / "__init__.py").exists()
