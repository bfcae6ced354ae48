"""Every example in a docstring, in README and in CONTRIBUTING runs and prints what it says."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from test_architecture import modules

ROOT = Path(__file__).parent.parent
NEEDS_EXTRA = ("fastopt.demo", "fastopt.cli")


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_rule_and_public_call_shows_an_example():
    import fastopt

    shown = [*fastopt.RULES.values(), fastopt.GradientNoise, fastopt.Optimizer, fastopt.update, fastopt.EWA]
    for thing in [*shown, fastopt.minibatches, fastopt.suggest_batch_size]:
        assert ">>>" in (thing.__doc__ or ""), f"{thing.__name__} has no example"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_of_documents_run_in_order(document, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    space: dict = {"__name__": document}
    for block in blocks:
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, space, document, document, 0)
            runner = doctest.DocTestRunner()
            runner.run(test, clear_globs=False)
            assert runner.failures == 0
            space.update(test.globs)
        else:
            exec(compile(block, document, "exec"), space)
