"""Which way imports run, and what importing fastopt costs."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# module → what of ours it may import; everything may import fastopt.errors, which imports nothing
MAY_IMPORT = {
    "fastopt.errors": set(),
    "fastopt.kernels": set(),
    "fastopt.kernels.form": set(),
    "fastopt.kernels.settings": {"fastopt.kernels.form"},
    "fastopt.kernels.noise": {"fastopt.kernels.storage"},
    "fastopt.kernels.storage": set(),
    "fastopt.kernels.symbols": set(),
    "fastopt.kernels.cache": set(),
    "fastopt.kernels.threads": set(),
    "fastopt.kernels.intrinsics": set(),
    "fastopt.kernels.launch": set(),
    "fastopt.kernels.rules": {"fastopt.kernels.form", "fastopt.kernels.settings", "fastopt.kernels.rules"},
    "fastopt.kernels.program": {
        "fastopt.kernels", "fastopt.kernels.form", "fastopt.kernels.noise", "fastopt.kernels.settings",
        "fastopt.kernels.storage", "fastopt.kernels.symbols",
    },
    "fastopt.kernels.printing": {"fastopt.kernels", "fastopt.kernels.program", "fastopt.kernels.symbols"},
    "fastopt.kernels.reference": {
        "fastopt.kernels", "fastopt.kernels.launch", "fastopt.kernels.noise", "fastopt.kernels.program",
        "fastopt.kernels.storage",
    },
    "fastopt.kernels.cpu": {
        "fastopt.kernels", "fastopt.kernels.cache", "fastopt.kernels.intrinsics", "fastopt.kernels.launch",
        "fastopt.kernels.printing", "fastopt.kernels.program", "fastopt.kernels.storage", "fastopt.kernels.threads",
    },
    "fastopt.kernels.cpu_table": {
        "fastopt.kernels", "fastopt.kernels.cache", "fastopt.kernels.cpu", "fastopt.kernels.launch",
        "fastopt.kernels.program", "fastopt.kernels.threads",
    },
    "fastopt.kernels.cuda_table": {
        "fastopt.kernels", "fastopt.kernels.cuda", "fastopt.kernels.launch", "fastopt.kernels.nvrtc",
        "fastopt.kernels.program", "fastopt.kernels.storage",
    },
    "fastopt.kernels.nvrtc": {"fastopt.kernels", "fastopt.kernels.cache"},
    "fastopt.kernels.cuda": {
        "fastopt.kernels", "fastopt.kernels.launch", "fastopt.kernels.nvrtc", "fastopt.kernels.printing",
        "fastopt.kernels.program", "fastopt.kernels.storage",
    },
    "fastopt.kernels.elementwise": {"fastopt.kernels.nvrtc", "fastopt.kernels.program"},
    "fastopt.buffers": {"fastopt", "fastopt.devices", "fastopt.kernels.program", "fastopt.kernels.storage"},
    "fastopt.schedules": set(),
    "fastopt.averages": set(),
    "fastopt.batches": set(),
    "fastopt.dispatch": {
        "fastopt.kernels", "fastopt.kernels.form", "fastopt.kernels.noise", "fastopt.kernels.program",
        "fastopt.kernels.storage", "fastopt.kernels.cpu", "fastopt.kernels.reference", "fastopt.kernels.cuda",
        "fastopt.devices",
    },
    "fastopt.devices": {"fastopt.kernels.nvrtc"},
    "fastopt.groups": {
        "fastopt", "fastopt.dispatch", "fastopt.kernels", "fastopt.kernels.program", "fastopt.kernels.settings",
        "fastopt.kernels.storage",
    },
    "fastopt.optimizer": {
        "fastopt", "fastopt.buffers", "fastopt.dispatch", "fastopt.groups", "fastopt.kernels.program",
        "fastopt.kernels.settings", "fastopt.kernels.storage",
    },
    "fastopt.ceiling": {
        "fastopt.buffers", "fastopt.kernels", "fastopt.kernels.cpu", "fastopt.kernels.intrinsics",
        "fastopt.kernels.launch", "fastopt.kernels.threads",
    },
    "fastopt.torch": {"fastopt.torch.optimizers"},
    "fastopt.torch.optimizers": {
        "fastopt.groups", "fastopt.kernels", "fastopt.kernels.form", "fastopt.kernels.rules", "fastopt.torch",
    },
    "fastopt.torch.nadam": {"fastopt.kernels", "fastopt.kernels.rules"},
    "fastopt.torch.watched": set(),
    "fastopt.torch.options": {"fastopt.kernels", "fastopt.kernels.rules", "fastopt.schedules"},
    "fastopt.torch.tensors": {
        "fastopt", "fastopt.devices", "fastopt.kernels.program", "fastopt.kernels.storage",
    },
    "fastopt.torch.native": {"fastopt.torch.tensors"},
    "fastopt.torch.walks": {"fastopt.kernels", "fastopt.kernels.cpu", "fastopt.torch", "fastopt.torch.native"},
    "fastopt.torch.before": {"fastopt.torch", "fastopt.torch.native", "fastopt.torch.tensors", "fastopt.torch.walks"},
    "fastopt.torch.flat": {"fastopt.kernels.storage", "fastopt.torch.tensors"},
    "fastopt.torch.kept": {
        "fastopt", "fastopt.dispatch", "fastopt.kernels.program", "fastopt.kernels.storage", "fastopt.torch.tensors",
    },
    "fastopt.torch.state": {
        "fastopt.kernels.program", "fastopt.kernels.storage", "fastopt.torch.flat", "fastopt.torch.kept",
        "fastopt.torch.tensors",
    },
    "fastopt.torch.part": {
        "fastopt", "fastopt.groups", "fastopt.kernels", "fastopt.kernels.cpu_table",
        "fastopt.kernels.cuda_table", "fastopt.kernels.form", "fastopt.kernels.noise", "fastopt.kernels.program",
        "fastopt.kernels.storage", "fastopt.torch", "fastopt.torch.before", "fastopt.torch.flat", "fastopt.torch.kept",
        "fastopt.torch.state", "fastopt.torch.tensors", "fastopt.torch.walks",
    },
    "fastopt.torch.adapter": {
        "fastopt", "fastopt.devices", "fastopt.dispatch", "fastopt.kernels.launch", "fastopt.kernels.storage",
        "fastopt.torch.before", "fastopt.torch.kept", "fastopt.torch.options", "fastopt.torch.part",
        "fastopt.torch.tensors", "fastopt.torch.watched",
    },
    "fastopt.cli": {"fastopt.demo.commands"},
    "fastopt": {
        "fastopt.averages", "fastopt.batches", "fastopt.dispatch", "fastopt.kernels", "fastopt.kernels.rules",
        "fastopt.kernels.storage", "fastopt.kernels.threads", "fastopt.optimizer", "fastopt.schedules",
    },
}  # fmt: skip
# a heavy package → who may import it
HEAVY = {
    "numba": {"fastopt.kernels.cpu", "fastopt.kernels.intrinsics"},
    "llvmlite": {"fastopt.kernels.cpu", "fastopt.kernels.intrinsics", "fastopt.demo.machine"},
    "cupy": {"fastopt.kernels.nvrtc"},
    "torch": {
        f"fastopt.torch.{name}"
        for name in "adapter before flat kept native optimizers options part state tensors".split()  # noqa: SIM905
    },
    "jax": set(),
    "ml_dtypes": {"fastopt.devices"},
    "matplotlib": {"fastopt.bench.pictures", "fastopt.bench.quality", "fastopt.demo.pictures"},
    "sklearn": {"fastopt.bench.quality", "fastopt.demo.digits"},
    "threadpoolctl": {"fastopt.bench.peers.tensors", "fastopt.bench.quality", "fastopt.demo.digits"},
    "rich": {"fastopt.bench.quality", "fastopt.demo.bench", "fastopt.demo.console", "fastopt.demo.commands"},
    "typer": {"fastopt.demo.commands"},
}


def modules() -> dict[str, Path]:
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
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("module", modules())
def test_imports_run_one_way(module):
    known = modules()
    ours = {name for name in imports(known[module]) if name in known} - {"fastopt.errors", module}
    rule = "fastopt.kernels.rules" if module.startswith("fastopt.kernels.rules") else module
    if rule in MAY_IMPORT:
        allowed = MAY_IMPORT[rule]
        assert all(
            name in allowed or any(name.startswith(a + ".") for a in allowed - {"fastopt.kernels"}) for name in ours
        ), ours
    elif not module.startswith(("fastopt.bench", "fastopt.demo")):
        pytest.fail(f"{module} has no row in MAY_IMPORT")
    if not module.startswith(("fastopt.bench", "fastopt.demo", "fastopt.cli")):
        assert not any(name.startswith("fastopt.demo") for name in ours)
    if not module.startswith(("fastopt.bench", "fastopt.demo")):
        assert not any(name.startswith("fastopt.bench") for name in ours)
    for heavy, may in HEAVY.items():
        if any(name.split(".")[0] == heavy for name in imports(known[module])):
            assert module in may


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


def test_the_demo_lists_every_package_that_it_imports():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    listed = {re.split(r"[<>=]", requirement)[0].replace("scikit-learn", "sklearn") for requirement in extra}
    listed -= {"fastopt[bf16]"}  # by way of an Optimizer
    used = {name.split(".")[0] for module, path in modules().items() if ".demo" in module for name in imports(path)}
    assert used & set(HEAVY) - {"llvmlite"} == listed
