"""Golden copies of a few printed kernels: a change of the generated text shows in a diff.

`python tests/test_printed.py` writes them anew.
"""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES

from fastopt.kernels.cpu import print_module
from fastopt.kernels.cuda import print_kernel
from fastopt.kernels.program import trace

FOLDER = Path(__file__).parent.parent / "kernels" / "printed"
GOLDEN = ("adam", "momentum-nesterov", "rmsprop-centered-momentum", "noise-sgd")


PRINTERS = {"cpu.py": print_module, "cuda.cu": print_kernel}


def printed(case: str, kind: str) -> tuple[Path, str]:
    program = trace(CASES[case], np.float32)
    return FOLDER / f"{program.name}.{kind}", PRINTERS[kind](program)


@pytest.mark.parametrize("kind", PRINTERS)
@pytest.mark.parametrize("case", GOLDEN)
def test_the_printed_text_is_the_golden_copy(case, kind):
    path, text = printed(case, kind)
    assert path.read_text() == text, "generated text changed: if it should, run python tests/test_printed.py"


def test_there_is_no_golden_copy_of_nothing():
    assert {p.name for p in FOLDER.iterdir()} == {printed(case, kind)[0].name for case in GOLDEN for kind in PRINTERS}


if __name__ == "__main__":
    for golden in GOLDEN:
        for printer in PRINTERS:
            target, content = printed(golden, printer)
            target.write_text(content)
