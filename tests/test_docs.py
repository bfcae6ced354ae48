"""Every example in a docstring, in README, in CONTRIBUTING and in docs/storage.md runs and prints what it says."""

import doctest
import importlib
import importlib.util
import mmap
import re
import sys
from dataclasses import fields
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from test_architecture import modules

from fastopt.kernels import cache
from fastopt.kernels.cuda import nvrtc

ROOT = Path(__file__).parent.parent
HAVE_EXAMPLES = {"fastopt.averages", "fastopt.batches", "fastopt.bench.ceiling", "fastopt.schedules.decay"}


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    if name.startswith("fastopt.torch"):
        pytest.importorskip("torch", reason="torch is not installed")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted or name not in HAVE_EXAMPLES


def test_every_rule_and_public_call_shows_an_example():
    import fastopt

    shown = [*fastopt.RULES.values(), fastopt.GradientNoise, fastopt.Optimizer, fastopt.update, fastopt.EWA]
    for thing in [*shown, fastopt.minibatches, fastopt.suggest_batch_size]:
        assert ">>>" in (thing.__doc__ or ""), f"{thing.__name__} has no example"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/storage.md"])
def test_python_blocks_of_documents_run_in_order(document, tmp_path, monkeypatch):
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^(?:<!-- needs (a GPU|torch) -->\n)?```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    space: dict = {"__name__": document}
    for needs, block in blocks:
        if needs == "torch" and importlib.util.find_spec("torch") is None:
            continue  # the other blocks run all the same; test_the_example_for_torch_runs says that this one did not
        if needs == "a GPU":
            with pytest.MonkeyPatch.context() as patch:  # the stand-in for CuPy plays the kernels on the CPU
                patch.setitem(sys.modules, "cupy", fake_cupy.install())
                patch.setattr(cache, "folder", lambda kind: tmp_path)
                nvrtc.function.cache_clear()
                exec(compile(block, document, "exec"), space)
                assert space["opt"].t == 2
                nvrtc.function.cache_clear()
            continue
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, space, document, document, 0)
            runner = doctest.DocTestRunner()
            runner.run(test, clear_globs=False)
            assert runner.failures == 0
            space.update(test.globs)
        else:
            exec(compile(block, document, "exec"), space)


def test_the_example_for_torch_runs():
    pytest.importorskip("torch", reason="torch is not installed: README's example for it did not run")
    assert "<!-- needs torch -->" in (ROOT / "README.md").read_text()


def test_an_mmap_is_bytes_and_is_updated_in_place_as_numbers():
    import fastopt

    with mmap.mmap(-1, 16) as memory:
        g = np.ones(4, np.float32)
        with pytest.raises(fastopt.LayoutError, match="uint8"):
            fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": memory, "g": g})
        with memoryview(memory) as lent, lent.cast("f") as p:
            fastopt.update(fastopt.SGD(lr=0.5), 1, {"p": p, "g": g})
        assert np.frombuffer(memory[:], np.float32).tolist() == [-0.5] * 4


def test_settings_and_defaults_are_those_of_torch_where_it_has_the_rule():
    import inspect

    import fastopt

    torch = pytest.importorskip("torch", reason="torch is not installed")
    shared = [name for name in (rule.__name__ for rule in fastopt.RULES.values()) if hasattr(torch.optim, name)]
    assert len(shared) == 8
    for name in shared:
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        for field in fields(getattr(fastopt, name)):
            if field.name in theirs:
                assert field.default == theirs[field.name].default, (name, field.name)
