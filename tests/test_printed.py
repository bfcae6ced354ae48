"""Golden copies of a few printed kernels, so that a change of the generated text shows in a diff.

`python tests/test_printed.py` updates them.
"""

from pathlib import Path
from unittest import mock

import pytest
from cases import CASES

from fastopt.kernels.compiler.trace import trace
from fastopt.kernels.cpu import printer, vectors
from fastopt.kernels.cuda.printer import print_kernel
from fastopt.kernels.javascript.printer import print_program

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


def print_for_cpu(program):
    """Print a program as for processors with AVX2, whichever this one is."""
    chosen = mock.patch.multiple(printer, codes_apart=lambda: True, ends_after_root=lambda: True)
    with chosen, mock.patch.object(vectors, "halves_at_once", return_value=2):
        return printer.print_source(program)


PRINTERS = {"cpu.py": print_for_cpu, "cuda.cu": print_kernel, "js": print_program}
PRINTED = [(case, kind) for case, storage in GOLDEN.items() for kind in PRINTERS if kind != "js" or storage == "f32"]
"""Each case in each language; JavaScript has full precision only."""


def printed(case: str, kind: str) -> tuple[Path, str]:
    """Return the path of a golden copy, and the text as it is printed now."""
    program = trace(CASES[case.split()[0]], GOLDEN[case])
    return FOLDER / f"{program.name}.{kind}", PRINTERS[kind](program)


@pytest.mark.parametrize(("case", "kind"), PRINTED)
def test_the_printed_text_equals_the_golden_copy(case, kind):
    path, text = printed(case, kind)
    assert path.read_text() == text, "the generated text changed; if intended, run python tests/test_printed.py"


def test_there_are_no_stale_golden_copies():
    assert {p.name for p in FOLDER.iterdir()} == {printed(*one)[0].name for one in PRINTED}


if __name__ == "__main__":
    for one in PRINTED:
        target, content = printed(*one)
        target.write_text(content)
