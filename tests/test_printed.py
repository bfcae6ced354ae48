"""Golden copies of a few printed kernels, so that a change of the generated text shows in a diff.

`python tests/test_printed.py` updates them.
"""

from pathlib import Path

import pytest
from cases import CASES

from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu.printer import print_source
from fastopt.kernels.cuda.printer import print_kernel

FOLDER = Path(__file__).parent.parent / "kernels" / "printed"
GOLDEN = {
    "adam": "f32",
    "adam split_8bit": "split_8bit",
    "momentum bf16": "bf16",
    "momentum-nesterov": "f32",
    "rmsprop-centered-momentum": "f32",
    "noise-sgd": "f32",
}
"""Name, whose first word is the case → the preset in which the rule is stored."""

PRINTERS = {"cpu.py": print_source, "cuda.cu": print_kernel}


def printed(case: str, kind: str) -> tuple[Path, str]:
    """Return the path of a golden copy, and the text as it is printed now."""
    program = trace(CASES[case.split()[0]], GOLDEN[case])
    return FOLDER / f"{program.name}.{kind}", PRINTERS[kind](program)


@pytest.mark.parametrize("kind", PRINTERS)
@pytest.mark.parametrize("case", GOLDEN)
def test_the_printed_text_equals_the_golden_copy(case, kind):
    path, text = printed(case, kind)
    assert path.read_text() == text, "the generated text changed; if intended, run python tests/test_printed.py"


def test_there_are_no_stale_golden_copies():
    assert {p.name for p in FOLDER.iterdir()} == {printed(case, kind)[0].name for case in GOLDEN for kind in PRINTERS}


if __name__ == "__main__":
    for golden in GOLDEN:
        for printer in PRINTERS:
            target, content = printed(golden, printer)
            target.write_text(content)
