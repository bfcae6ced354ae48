"""The examples in docstrings, README, CONTRIBUTING and docs/ run and print the output that is shown."""

import doctest
import importlib
import importlib.util
import mmap
import re
import sys
from dataclasses import fields
from pathlib import Path

import examples
import fake_cupy
import numpy as np
import pytest
from test_architecture import modules

from fastopt import arrays
from fastopt.kernels import cache, formats
from fastopt.kernels.cuda import nvrtc

ROOT = Path(__file__).parent.parent
WITH_EXAMPLES = {"fastopt.averages", "fastopt.batches", "fastopt.bench.ceiling", "fastopt.schedules.decay"}


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    if name.startswith("fastopt.torch") or name == "fastopt.arrays.torch":
        pytest.importorskip("torch", reason="torch is not installed")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted or name not in WITH_EXAMPLES


def test_every_rule_and_public_function_has_an_example():
    import fastopt

    shown = [*fastopt.RULES.values(), fastopt.GradientNoise, fastopt.Optimizer, fastopt.update, fastopt.EWA]
    for thing in [*shown, fastopt.minibatches, fastopt.suggest_batch_size]:
        assert ">>>" in (thing.__doc__ or ""), f"{thing.__name__} has no example"


@pytest.fixture
def tables():
    """Undo what examples add to the tables of formats and array libraries."""
    stored, libraries = dict(formats.STORAGES), list(arrays.LIBRARIES)
    yield
    formats.STORAGES.clear()
    formats.STORAGES.update(stored)
    arrays.LIBRARIES[:] = libraries


DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
WITH_CODE = [name for name in DOCUMENTS if examples.blocks((ROOT / name).read_text())]
CHAPTERS = [name for name in WITH_CODE if name.startswith("docs/guide/")]


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("document", WITH_CODE)
def test_python_blocks_of_documents_run_in_order(document, tmp_path, monkeypatch):
    text = (ROOT / document).read_text()
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": document}
    for needs, code in examples.blocks(text):
        if needs == "torch" and importlib.util.find_spec("torch") is None:
            continue  # the other blocks still run; test_the_torch_examples_are_not_skipped reports these as skipped
        if needs == "a GPU":
            with pytest.MonkeyPatch.context() as patch:  # the fake CuPy runs kernels on the host
                patch.setitem(sys.modules, "cupy", fake_cupy.install())
                patch.setattr(cache, "folder", lambda kind: tmp_path)
                nvrtc.function.cache_clear()
                examples.run(code, namespace, document)
                assert namespace["opt"].t == 2
                nvrtc.function.cache_clear()
            continue
        examples.run(code, namespace, document)
    shown = re.findall(r"^!\[(.*)\]\(([\w-]+\.svg)\)$", text, re.MULTILINE)
    assert {picture for _, picture in shown} == {path.name for path in tmp_path.glob("*.svg")}
    assert all(len(alt) >= 40 for alt, _ in shown), "a picture is described in words, for those who do not see it"


def test_documents_with_code_are_found():
    assert {"README.md", "CONTRIBUTING.md", "docs/storage.md", "docs/recipes.md", "docs/start/torch.md"} <= set(
        WITH_CODE
    )
    assert len(CHAPTERS) == 8
    assert all(".svg)" in (ROOT / chapter).read_text() for chapter in CHAPTERS)


def test_the_torch_examples_are_not_skipped():
    pytest.importorskip("torch", reason="torch is not installed: the examples for torch in documents were skipped")
    marked = {name for name in WITH_CODE if "<!-- needs torch -->" in (ROOT / name).read_text()}
    assert marked == {"README.md", "docs/start/torch.md"}


def test_an_example_that_prints_something_else_fails(capsys):
    with pytest.raises(AssertionError, match="something else"):
        examples.run(">>> 1 + 1\n3\n", {}, "page.md")
    assert "Got:\n    2" in capsys.readouterr().out


def test_an_mmap_is_refused_as_bytes_and_updated_in_place_as_floats():
    import fastopt

    with mmap.mmap(-1, 16) as memory:
        g = np.ones(4, np.float32)
        with pytest.raises(fastopt.LayoutError, match="uint8"):
            fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": memory, "g": g})
        with memoryview(memory) as view, view.cast("f") as p:
            fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
        assert np.frombuffer(memory[:], np.float32).tolist() == [-0.5] * 4


def test_settings_and_defaults_equal_torchs():
    import inspect

    import fastopt

    torch = pytest.importorskip("torch", reason="torch is not installed")
    shared = [name for name in (rule.__name__ for rule in fastopt.RULES.values()) if hasattr(torch.optim, name)]
    assert len(shared) >= 8
    for name in shared:
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        for field in fields(getattr(fastopt, name)):
            if field.name in theirs:
                assert field.default == theirs[field.name].default, (name, field.name)
