"""The Python code in Markdown documents, which the tests and the pictures of the guide run."""

import doctest
import re
from typing import Any

_BLOCK = re.compile(r"^(?:<!-- needs (a GPU|torch) -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """Return what each block of Python code needs, "a GPU", "torch" or nothing, and the code."""
    return _BLOCK.findall(text)


def run(code: str, namespace: dict[str, Any], document: str) -> None:
    """Run a block, or an example with `>>>`, whose output has to be what it prints.

    Raises:
        AssertionError: it prints something else.

    """
    if ">>>" not in code:
        exec(compile(code, document, "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(code, namespace, document, document, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    if runner.failures:
        raise AssertionError(f"{document}: an example prints something else than what is shown")
    namespace.update(test.globs)
