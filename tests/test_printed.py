"""Golden copies of a few printed kernels: a change of the generated text shows in a diff.

`python tests/test_printed.py` writes them anew.
"""

from pathlib import Path

import numpy as np
import pytest
from cases import CASES

from fastopt.kernels.cpu import print_module
from fastopt.kernels.program import trace

FOLDER = Path(__file__).parent.parent / "kernels" / "printed"
GOLDEN = ("adam", "momentum-nesterov", "rmsprop-centered-momentum", "noise-sgd")


def printed(case: str) -> tuple[Path, str]:
    program = trace(CASES[case], np.float32)
    return FOLDER / f"{program.name}.cpu.py", print_module(program)


@pytest.mark.parametrize("case", GOLDEN)
def test_the_printed_text_is_the_golden_copy(case):
    path, text = printed(case)
    assert path.read_text() == text, "generated text changed: if it should, run python tests/test_printed.py"


def test_there_is_no_golden_copy_of_nothing():
    assert {p.name for p in FOLDER.iterdir()} == {printed(case)[0].name for case in GOLDEN}


if __name__ == "__main__":
    for golden in GOLDEN:
        target, content = printed(golden)
        target.write_text(content)
